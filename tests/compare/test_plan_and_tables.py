"""Equal budgets, equal ranges; tables that say what the reports say, and no more."""

import math

import pandas as pd
import pytest

from ray_deltastn.compare.plan import CONTENDERS, CompareConfig, plan
from ray_deltastn.compare.tables import cells, differences, markdown, outcomes, summary
from ray_deltastn.tune.config import ConfigError

CONFIG = "configs/digits_compare.yaml"


def test_every_method_has_the_same_budget():
    config = CompareConfig.read(CONFIG)
    for one in plan(config, list(CONTENDERS), 2):
        train, tune = one.config.train, one.config.tune
        if one.method is None:
            assert train["epochs"] == config.budget == 12 * 30
            assert tune.num_samples == 3 * 2
        elif tune.budget is not None:
            assert tune.budget == config.budget
        else:
            assert tune.num_samples * train["epochs"] == config.budget


def test_constant_methods_search_what_the_others_tune():
    config = CompareConfig.read(CONFIG)
    by_name = {one.name: one.config for one in plan(config, ["random", "hybrid", "delta-stn"], 1)}
    assert by_name["random-s0"].search["hyperparameters"] == "all"
    assert "hyperparameters" not in by_name["hybrid-s0"].search
    assert by_name["hybrid-s0"].train["preset"] == "fast"
    assert "preset" not in by_name["random-s0"].train
    single = by_name["single-delta-stn-x1"]
    assert {name: single.train[name] for name in config.single} == config.single


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("train.seed=3", "`seed` is set by the comparison itself"),
        ("tune.searcher=random", "`tune.searcher` is set by the comparison itself"),
        ("single={lr: 0.1}", "`single` must hold every option of `search`, got no `momentum`"),
        ("self_tuned.hyper_lrs=0.1", "did you mean `self_tuned.hyper_lr`?"),
        ("trials=0", "`trials`"),
        ("trial=3", "did you mean `trials`?"),
    ],
)
def test_comparisons_that_are_none_are_refused(change, reason):
    with pytest.raises(ConfigError) as error:
        CompareConfig.read(CONFIG, [change])
    assert reason in str(error.value)


@pytest.mark.parametrize(("methods", "seeds"), [(["randon"], 1), (["bo", "bo"], 1), ([], 1), (["bo"], 0)])
def test_methods_and_seeds_are_checked(methods, seeds):
    with pytest.raises(ValueError, match=r"--methods|--seeds"):
        plan(CompareConfig.read(CONFIG), methods, seeds)


def reports(method, seed, trials):
    """Reports of trials that ran one after another, one second each, from their validation losses."""
    rows = []
    for number, losses in enumerate(trials):
        for iteration, loss in enumerate(losses, 1):
            rows.append(
                {
                    "method": method, "seed": seed, "wall_seconds": 9.0, "trial_id": f"{method}{seed}{number}",
                    "arrived": float(len(rows)), "time_this_iter_s": 1.0, "training_iteration": iteration,
                    "valid_loss": loss, "test_loss": loss + 1, "valid_accuracy": 0.5, "test_accuracy": 0.25,
                }
            )  # fmt: skip
    return rows


def test_outcomes_are_those_of_the_best_trial_at_its_best_report():
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


def test_nothing_is_said_within_the_noise():
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
    one = differences(per_seed[per_seed["seed"] == 0], ["best_valid_loss"])
    assert all(str(difference).endswith("one seed: no statement") for difference in one)
    table = summary(per_seed).set_index("method")
    assert table.loc["random", "best_valid_loss_mean"] == pytest.approx(2.1)
    assert table.loc["random", "best_valid_loss_std"] == pytest.approx(0.1)
    assert "2.1000 ± 0.1000" in markdown(summary(per_seed))
    header, lines = cells(summary(per_seed))
    assert all(len(line) == len(header) for line in lines)
