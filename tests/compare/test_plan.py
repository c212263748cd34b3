"""Methods of a comparison have equal budgets and equal ranges."""

import pytest

from ray_deltastn.compare.contenders import CONTENDERS
from ray_deltastn.compare.plan import CompareConfig, plan
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


def test_self_tuned_epochs_may_cost_several():
    config = CompareConfig.read(CONFIG, ["self_tuned_cost=3"])
    by_name = {one.name: one.config for one in plan(config, list(CONTENDERS), 1)}
    assert by_name["fixed-s0"].train["epochs"] == 360
    assert by_name["stn+centered-stn+delta-stn-s0"].train["epochs"] == 120
    assert by_name["random-s0"].tune.num_samples == 12
    assert by_name["hybrid-s0"].tune.num_samples == 4
    assert [config.budget_of(name) for name in ("fixed", "bo", "stn", "hybrid")] == [360, 360, 120, 120]


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
    assert by_name["hybrid-s0"].train["preset"] == "recommended"
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
