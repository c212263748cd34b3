"""The outcomes, differences and tables of a comparison agree with its reports."""

import math
from unittest.mock import ANY

import pandas as pd
import pytest
from scipy import stats

from ray_deltastn.compare.differences import differences, holm, p_value
from ray_deltastn.compare.outcomes import outcomes, spending, summary
from ray_deltastn.compare.tables import cells, first_columns, gain, markdown, number, shortfalls


def reports(method, seed, trials):
    """Reports of trials that run one after another and take one second per report; `trials` are validation losses."""
    rows = []
    for place, losses in enumerate(trials):
        for iteration, loss in enumerate(losses, 1):
            rows.append(
                {
                    "method": method,
                    "seed": seed,
                    "wall_seconds": 9.0,
                    "trial_id": f"{method}{seed}{place}",
                    "timestamp": float(len(rows)),
                    "time_this_iter_s": 1.0,
                    "training_iteration": iteration,
                    "valid_loss": loss,
                    "test_loss": loss + 1,
                    "valid_accuracy": 0.5,
                    "test_accuracy": 0.25,
                }
            )
    return rows


def test_outcomes_come_from_the_best_report_of_the_best_trial():
    table = outcomes(
        pd.DataFrame(
            [
                *reports("random", 0, [[3.0, 2.0, 2.5], [math.inf, 4.0, 3.5]]),
                *reports("hybrid", 0, [[3.0, 2.0], [1.0, 1.5]]),
                *reports("bo", 0, [[3.0, 2.1]]),
            ]
        )
    ).set_index("method")
    assert table.loc["random", ["best_valid_loss", "final_valid_loss", "test_loss"]].tolist() == [2.0, 2.5, 3.0]
    assert table.loc["random", ["trials", "epochs", "device_seconds", "wall_seconds"]].tolist() == [2, 6, 6, 9]
    assert table["epochs_to_random"].tolist()[:2] == [2, 2]
    assert math.isnan(table.loc["bo", "epochs_to_random"])


def test_the_tables_have_the_own_metrics_of_the_task():
    rows = [
        {**row, "valid_perplexity": math.exp(row["valid_loss"]), "test_top_n": 10 * row["test_loss"]}
        for seed in range(2)
        for row in reports("random", seed, [[2.0 + seed, 3.0], [4.0, 3.5]])
    ]
    per_seed = outcomes(pd.DataFrame(rows))
    assert per_seed["valid_perplexity"].tolist() == [math.exp(2.0), math.exp(3.0)]
    assert per_seed["test_top_n"].tolist() == [30.0, 40.0]
    table = summary(per_seed)
    header, (row,) = cells(table)
    assert row[header.index("test top n")] == "35.000 ± 7.071"
    low, high = math.exp(2), math.exp(3)
    assert row[header.index("validation perplexity")] == f"{(low + high) / 2:.3f} ± {(high - low) / 2**0.5:.3f}"
    assert list(first_columns(per_seed).values()) == [
        "valid loss",
        "test loss",
        "accuracy",
        "perplexity",
        "top n",
        "seconds",
    ]


def test_a_diverged_seed_is_reported_in_the_tables():
    rows = [row for seed in range(3) for row in reports("random", seed, [[2.0 + 0.1 * seed]])]
    rows += [row for seed in range(3) for row in reports("stn", seed, [[1.0 if seed else math.inf]])]
    per_seed = outcomes(pd.DataFrame(rows))
    (apart,) = differences(per_seed, ["best_valid_loss"])
    assert (apart.n, apart.seeds) == (2, 3)
    assert str(apart).endswith("no conclusion: 1 of 3 seeds have no pair of finite losses")
    table = markdown(summary(per_seed))
    assert "1.0000 ± 0.0000 (2 of 3)" in table
    assert "2.1000 ± 0.1000 |" in table
    assert shortfalls(per_seed, {"random": 1, "stn": 1, "bo": 1}, 3) == [
        f"bo, seed {seed}: 0 of 1 epochs (no finished experiment)" for seed in range(3)
    ]


def test_the_gain_is_told_against_no_tuning_and_random_search():
    rows = [
        row for name, loss in (("fixed", 2.0), ("random", 1.25), ("hybrid", 1.0)) for row in reports(name, 0, [[loss]])
    ]
    told = gain(outcomes(pd.DataFrame(rows)))
    assert told.startswith("The validation loss of hybrid is 1.0000 after ")
    assert "50% below no tuning (2.0000 after" in told
    assert "20% below random search (1.2500 after" in told
    assert gain(outcomes(pd.DataFrame(rows[:2]))) == ""
    worse = [row for name, loss in (("random", 1.0), ("stn", 1.1)) for row in reports(name, 0, [[loss]])]
    assert "10% above random search" in gain(outcomes(pd.DataFrame(worse)))


def test_p_values_are_adjusted_for_their_number():
    assert holm([0.01, 0.04, math.nan, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), ANY, pytest.approx(0.06)]
    assert math.isnan(holm([0.01, math.nan])[1])
    # Three similar differences are significant in one test, but not in one of 16 tests.
    values = [-0.028, -0.025, -0.031]
    assert p_value(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert p_value(values) < 0.05 < holm([p_value(values)] * 16)[0]
    assert (p_value([0.0, 0.0]), p_value([1.0, 1.0])) == (1.0, 0.0)


def test_self_tuned_single_runs_are_also_compared_with_fixed():
    losses = {"fixed": 3.0, "random": 2.0, "delta-stn": 2.5, "hybrid": 1.0}
    rows = [
        row for method, loss in losses.items() for seed in range(2) for row in reports(method, seed, [[loss + seed]])
    ]
    found = differences(outcomes(pd.DataFrame(rows)), ["best_valid_loss"])
    assert [(one.method, one.reference, one.mean) for one in found] == [
        ("fixed", "random", 1.0),
        ("delta-stn", "random", 0.5),
        ("hybrid", "random", -1.0),
        ("delta-stn", "fixed", -0.5),
    ]


def test_there_is_no_conclusion_until_all_seeds_have_run():
    rows = [row for seed in range(3) for row in reports("stn", seed, [[1.0 + 0.01 * seed]])]
    rows += [row for seed in range(2) for row in reports("random", seed, [[2.0]])]
    per_seed = outcomes(pd.DataFrame(rows))
    (apart,) = differences(per_seed, ["best_valid_loss"], seeds=3)
    assert str(apart).endswith("no conclusion: 1 of 3 seeds have no pair of finite losses")
    (apart,) = differences(per_seed[per_seed["seed"] < 2], ["best_valid_loss"], seeds=2)
    assert (apart.n, apart.verdict) == (2, "lower")
    (apart,) = differences(per_seed[per_seed["seed"] < 2], ["best_valid_loss"], seeds=3)
    assert apart.verdict.startswith("no conclusion")


def test_runs_equal_to_the_reference_are_called_the_same_runs():
    rows = [row for seed in range(3) for row in reports("random", seed, [[2.0 + 0.1 * seed]])]
    rows += [{**row, "method": "asha"} for row in rows]
    (apart,) = differences(outcomes(pd.DataFrame(rows)), ["best_valid_loss"])
    assert str(apart).endswith("+0.0000 ± 0.0000, the same runs")


def test_best_loss_within_the_device_seconds_of_random():
    slow = [{**row, "time_this_iter_s": 2.5} for row in reports("stn", 0, [[3.0, 2.0, 1.5, 1.0]])]
    slower = [{**row, "time_this_iter_s": 7.0} for row in reports("bo", 0, [[1.0]])]
    table = outcomes(pd.DataFrame([*reports("random", 0, [[3.0, 2.5, 2.2, 2.1, 2.4]]), *slow, *slower]))
    table = table.set_index("method")
    assert table.loc[["random", "stn"], "valid_loss_at_random"].tolist() == [2.1, 2.0]
    assert math.isnan(table.loc["bo", "valid_loss_at_random"])


def test_seconds_on_a_fraction_of_a_gpu_count_as_that_fraction():
    found = pd.DataFrame(reports("random", 0, [[3.0, 2.0]]))
    assert spending(found)["spent_seconds"].tolist() == [1.0, 2.0]
    assert spending(found.assign(**{"config/resources/gpu": [0.25, 2]}))["spent_seconds"].tolist() == [0.25, 1.25]


def test_a_deviation_has_the_decimals_of_its_mean():
    assert [number(0.606, "device_seconds", 18.6), number(20.82, "device_seconds")] == ["0.6", "20.8"]


def test_a_difference_is_lower_only_if_it_is_significant():
    rows = [row for seed in range(3) for row in reports("random", seed, [[2.0 + 0.1 * seed]])]
    rows += [row for seed in range(3) for row in reports("bo", seed, [[2.0 + 0.1 * (2 - seed)]])]
    rows += [row for seed in range(3) for row in reports("hybrid", seed, [[1.0 + 0.1 * seed + 0.01 * (seed % 2)]])]
    per_seed = outcomes(pd.DataFrame(rows))
    bo, hybrid = differences(per_seed, ["best_valid_loss"])
    assert (bo.mean, bo.n) == (pytest.approx(0.0), 3)
    assert str(bo).endswith("within the noise")
    # Student's t with two degrees of freedom: 4.3027.
    assert hybrid.mean == pytest.approx(-1 + 0.01 / 3)
    assert hybrid.half_width == pytest.approx(4.3027 * 0.0057735 / math.sqrt(3), rel=1e-4)
    assert str(hybrid).endswith("lower")
    # There are two differences, so the smaller p is doubled (Holm).
    assert bo.p == pytest.approx(1.0)
    exact = [-1.0, -0.99, -1.0]
    assert hybrid.p == pytest.approx(2 * stats.ttest_1samp(exact, 0).pvalue, rel=1e-6)
    one = differences(per_seed[per_seed["seed"] == 0], ["best_valid_loss"])
    assert all(str(difference).endswith("no conclusion: only one seed") for difference in one)
    table = summary(per_seed).set_index("method")
    assert table.loc["random", "best_valid_loss_mean"] == pytest.approx(2.1)
    assert table.loc["random", "best_valid_loss_std"] == pytest.approx(0.1)
    assert "2.1000 ± 0.1000" in markdown(summary(per_seed))
    header, lines = cells(summary(per_seed))
    assert all(len(line) == len(header) for line in lines)
