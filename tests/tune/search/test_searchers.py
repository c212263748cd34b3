"""Searchers by name: their proposals repeat with the seed, and hyperparameters have their own ranges."""

import json
import sys

import pandas as pd
import pytest
from ray.tune.registry import register_trainable

from ray_deltastn.cli import main
from ray_deltastn.tune.config import ConfigError, ExperimentConfig
from ray_deltastn.tune.experiment import check_task
from ray_deltastn.tune.folder.results import read_results
from ray_deltastn.tune.search.searchers import SEARCHERS, make_searcher
from tests.tune.search.proposals import SPACE

YAML = """
task: tests.tune.tiny:build
train: {method: fixed, epochs: 2, batch_size: 16, warmup: 0}
search: {lr: "loguniform(0.01, 0.3)", hyperparameters: all}
tune: {num_samples: 4, max_concurrent: 2}
"""


def proposals(name, seed, count=8):
    """The first proposals of a searcher whose trials end one after the other, one of them badly."""
    searcher = make_searcher(name, SPACE, num_samples=count, max_concurrent=1, seed=seed)
    found = []
    if hasattr(searcher, "next_trial"):
        register_trainable("nothing", lambda config: None)
        searcher.add_configurations({"e": {"run": "nothing", "config": SPACE, "num_samples": count}})
        for _ in range(count):
            trial = searcher.next_trial()
            found.append(trial.config)
            searcher.on_trial_complete(trial.trial_id, {})
        assert searcher.next_trial() is None
    else:
        searcher.set_search_properties("loss", "min", SPACE)
        for i in range(count):
            found.append(searcher.suggest(str(i)))
            loss = float("inf") if i == 3 else found[-1]["lr"]
            searcher.on_trial_complete(str(i), {"loss": loss, "training_iteration": 1})
    assert searcher.seconds > 0
    return [{key: value for key, value in config.items() if key != "task"} for config in found]


@pytest.mark.parametrize("name", SEARCHERS)
def test_proposals_repeat_with_their_seed_and_stay_in_their_ranges(name):
    first = proposals(name, seed=1)
    assert first == proposals(name, seed=1)
    assert first != proposals(name, seed=2)
    for config in first:
        assert 0.01 <= config["lr"] <= 1.0
        assert 0.0 <= config["hyperparameters"]["dropout"] <= 0.8
        assert config["hyperparameters"]["holes"] in range(5)
        assert config["schedule"] in ("cosine", None)


def test_unknown_searchers_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(ValueError, match="`searcher` must be one of bo, random, grid, optuna-tpe, optuna-gp, got 'hy'"):
        make_searcher("hy", SPACE, num_samples=4, max_concurrent=1, seed=0)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"`searcher: optuna-tpe` needs Optuna: pip install 'ray-deltastn\[optuna\]'"):
        make_searcher("optuna-tpe", SPACE, num_samples=4, max_concurrent=1, seed=0)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(YAML)
    return path


def test_all_hyperparameters_are_searched_in_their_own_ranges(config):
    spelt = check_task(ExperimentConfig.read(config, ["search.hyperparameters.dropout=uniform(0.1, 0.2)"])).config
    assert spelt.search == {
        "hyperparameters.dropout": "uniform(0.1, 0.2)",
        "hyperparameters.decay": "loguniform(1e-06, 1.0)",
        "lr": "loguniform(0.01, 0.3)",
    }
    constant = check_task(ExperimentConfig.read(config, ["train.hyperparameters.dropout=0.1"])).config
    assert set(constant.search) == {"hyperparameters.decay", "lr"}
    space = spelt.param_space()["hyperparameters"]
    assert (space["dropout"].lower, space["dropout"].upper) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.method=delta-stn", "`search.hyperparameters` needs `method: fixed`, got 'delta-stn'"),
        ("search.hyperparameters=uniform(0, 1)", "`search.hyperparameters` must be `all`, got 'uniform(0, 1)'"),
        ("tune.searcher=tpe", "`tune.searcher` must be 'bo', 'random', 'grid', 'optuna-tpe' or 'optuna-gp'"),
    ],
)
def test_searches_that_cannot_be_are_refused(config, override, reason):
    with pytest.raises(ConfigError) as error:
        ExperimentConfig.read(config, [override])
    assert reason in str(error.value)


def test_a_misspelt_hyperparameter_is_named(config):
    with pytest.raises(ValueError, match=r"`search\.hyperparameters` names the unknown hyperparameter 'dropuot'"):
        check_task(ExperimentConfig.read(config, ["search.hyperparameters.dropuot=uniform(0.1, 0.2)"]))


@pytest.mark.parametrize("name", ["grid", "optuna-tpe"])
def test_the_command_searches_constants_and_reports_the_drivers_time(name, config, tmp_path, capsys, ray_cluster):
    out = tmp_path / "out"
    assert main(["run", str(config), "--out", str(out), "--set", f"tune.searcher={name}"]) == 0
    results = read_results(out / "results.csv")
    assert results["trial_id"].nunique() == 4
    assert pd.read_parquet(out / "results.parquet")["valid_loss"].tolist() == results["valid_loss"].tolist()
    assert results.groupby("trial_id")["epoch"].max().tolist() == [2, 2, 2, 2]
    assert results["config/hyperparameters/dropout"].nunique() > 1
    used = results["config/hyperparameters/decay"], results["hyperparameters/decay"]
    assert used[1].tolist() == pytest.approx(used[0].tolist())
    assert json.loads((out / "driver.json").read_text())["searcher_seconds"] > 0
    assert "The searcher took" in capsys.readouterr().out
