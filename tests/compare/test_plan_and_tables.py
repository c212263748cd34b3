"""Methods are compared with equal budgets and ranges, and the tables agree with the reports."""

import math
from unittest.mock import ANY

import pandas as pd
import pytest
from scipy import stats

from ray_deltastn.compare.plan import CONTENDERS, CompareConfig, plan
from ray_deltastn.compare.tables import (
    cells,
    differences,
    holm,
    markdown,
    number,
    outcomes,
    p_value,
    shortfalls,
    spending,
    summary,
)
from ray_deltastn.tune.config import ConfigError

CONFIG = "configs/digits_compare.yaml"


def test_every_method_has_the_same_budget():
    config = CompareConfig.read(CONFIG)
    for one in plan(config, list(CONTENDERS), 2):
        train, tune = one.config.train, one.config.tune
        if one.single:
            assert train["epochs"] == config.budget == 12 * 30
            assert tune.num_samples == 4 * 2
        elif tune.budget is not None:
            assert tune.budget == config.budget
        else:
            assert tune.num_samples * train["epochs"] == config.budget


def test_metric_and_concurrency_depend_on_the_method():
    by_name = {one.name: one.config.tune for one in plan(CompareConfig.read(CONFIG), list(CONTENDERS), 1)}
    # PBT ranks trials by their present loss. Model-based search needs results before it proposes all trials.
    assert {name: tune.metric for name, tune in by_name.items() if tune.metric != "best_valid_loss"} == {
        "pbt-s0": "valid_loss"
    }
    assert {name: tune.max_concurrent for name, tune in by_name.items() if tune.max_concurrent} == {
        "bo-s0": 2,
        "hybrid-s0": 2,
    }
    own = CompareConfig.read(CONFIG, ["tune.max_concurrent=5"])
    assert plan(own, ["bo"], 1)[0].config.tune.max_concurrent == 5


def test_constant_methods_search_the_hyperparameters_that_the_others_tune():
    config = CompareConfig.read(CONFIG)
    by_name = {one.name: one.config for one in plan(config, ["random", "hybrid", "delta-stn"], 1)}
    assert by_name["random-s0"].search["hyperparameters"] == "all"
    assert "hyperparameters" not in by_name["hybrid-s0"].search
    assert by_name["hybrid-s0"].train["preset"] == "fast"
    assert "preset" not in by_name["random-s0"].train
    single = by_name["delta-stn-s0"]
    assert {name: single.train[name] for name in config.single} == config.single


def test_started_experiments_are_kept_and_missing_ones_are_added():
    config = CompareConfig.read(CONFIG)
    names = [one.name for one in plan(config, ["hybrid", "delta-stn", "stn"], 2)]
    assert names == ["stn+delta-stn-s0+1", "hybrid-s0", "hybrid-s1"]
    begun = ["stn+delta-stn-s0+1", "hybrid-s0", "notes", "pbt-s0"]
    names = [one.name for one in plan(config, ["delta-stn", "centered-stn", "stn", "hybrid"], 3, begun)]
    assert names[:3] == ["stn+delta-stn-s0+1", "centered-stn-s0+1", "stn+centered-stn+delta-stn-s2"]
    assert names[3:] == ["hybrid-s0", "hybrid-s1", "hybrid-s2"]


def test_dotted_outer_options_are_set_in_the_mappings_of_single_runs():
    config = CompareConfig.model_validate(
        {
            "task": "digits-mlp",
            "options": {"net": {"depth": 2}},
            "train": {"epochs": 2, "schedule": {"name": "step", "step_size": 5}},
            "search": {"options.net.width": "choice([8, 16])", "schedule.gamma": "uniform(0.1, 0.9)"},
            "single": {"options.net.width": 8, "schedule.gamma": 0.5},
        }
    )
    single = plan(config, ["stn"], 1)[0].config
    assert single.options == {"net": {"depth": 2, "width": 8}}
    assert single.train["schedule"] == {"name": "step", "step_size": 5, "gamma": 0.5}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("train.seed=3", "`train.seed` must not be given, the comparison sets it; got 3"),
        ("tune.searcher=random", "`tune.searcher` must not be given, the comparison sets it; got 'random'"),
        ("single={lr: 0.1}", "`single` must hold every option of `search`, got no value for `momentum`"),
        ("self_tuned.hyper_lrs=0.1", "did you mean `self_tuned.hyper_lr`?"),
        ("trials=0", "`trials`"),
        ("self_tuned.steps_per_report=2", "`self_tuned.steps_per_report` must not be given, the comparison sets it"),
        ("train.patience=2", "`train.patience` must not be given, the comparison sets it; got 2"),
        ("search.hyper_lr=uniform(0.01, 0.1)", "`search.hyper_lr` must be an option of all methods"),
        ("single.lr=-1", "`lr > 0` must hold, got lr=-1"),
        ("trial=3", "did you mean `trials`?"),
        ("search.hyperparameters.x=uniform(0, 1)", "methods with constant hyperparameters search all of them"),
        ("search={}", "`single.lr` is not a known key; known are none here"),
    ],
)
def test_invalid_comparisons_are_refused(change, reason):
    with pytest.raises(ConfigError) as error:
        CompareConfig.read(CONFIG, [change])
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("methods", "seeds"), [(["randon"], 1), (["bo", "bo"], 1), (["bo", ""], 1), ([], 1), (["bo"], 0)]
)
def test_methods_and_seeds_are_checked(methods, seeds):
    with pytest.raises(ValueError, match=r"--methods|--seeds"):
        plan(CompareConfig.read(CONFIG), methods, seeds)


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
    assert shortfalls(per_seed, ["random", "stn", "bo"], 3, 1) == [
        f"bo, seed {seed}: 0 of 1 epochs (no finished experiment)" for seed in range(3)
    ]


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
