"""The control has the outer options of the best trial, and tunes nothing."""

import json
import shutil

import pytest

from ray_deltastn.cli import main
from ray_deltastn.tune.config import ConfigError, ExperimentConfig
from ray_deltastn.tune.control import control_of, run_with_control
from ray_deltastn.tune.folder.layout import ResumeError
from ray_deltastn.tune.folder.results import read_results

EXPERIMENT = """
task: tests.tune.tiny:build
options: {depth: 2}
train: {epochs: 4, batch_size: 16, warmup: 1, hyper_lr: 0.05, seed: 3}
search: {lr: "loguniform(0.01, 0.3)", options.width: "randint(4, 12)"}
tune: {searcher: random, num_samples: 2, cpu: 0.5}
control: true
"""


def test_the_control_keeps_everything_but_the_tuning():
    config = ExperimentConfig(
        task="digits-mlp",
        options={"width": 8},
        train={"epochs": 3, "schedule": {"name": "step", "step_size": 2}, "hyper_lr": 0.1},
        search={
            "lr": "uniform(0.1, 0.2)",
            "options.inner.rate": "choice([1, 2])",
            "method": "choice(['stn', 'fixed'])",
            "schedule.gamma": "choice([0.1, 0.5])",
            "hyperparameters": "all",
        }
        | {"method": "choice(['fixed'])"},
        tune={"num_samples": 9, "scheduler": "asha", "budget": 20, "cpu": 2, "metric": "valid_loss", "seed": 4},
        control=True,
    )
    best = {"lr": 0.15, "inner": {"rate": 2}, "method": "fixed", "schedule": {"gamma": 0.5}}
    control = control_of(config, {**best, "hyperparameters": {"input_dropout": 0.4}})
    assert control.options == {"width": 8, "inner": {"rate": 2}}
    assert control.train == {
        "epochs": 3,
        "schedule": {"name": "step", "step_size": 2, "gamma": 0.5},
        "hyper_lr": 0.1,
        "lr": 0.15,
        "method": "fixed",
    }
    assert control.search == {}
    assert control.control is False
    tune = control.tune
    assert (tune.num_samples, tune.scheduler, tune.budget, tune.cpu, tune.seed) == (1, "fifo", None, 2, 4)


@pytest.mark.parametrize("text", ["train: {method: fixed}", "train: {method: fixed, hyperparameters: {x: 1}}"])
def test_a_control_of_an_experiment_that_tunes_nothing_is_refused(text, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(f"task: digits-mlp\ncontrol: true\n{text}\n")
    with pytest.raises(ConfigError, match="`control: true` needs trials that tune hyperparameters"):
        ExperimentConfig.read(path)


@pytest.mark.slow
def test_an_interrupted_control_is_continued_and_the_search_is_not_run_again(tmp_path, ray_cluster, capsys):
    path, out = tmp_path / "one.yaml", tmp_path / "out"
    path.write_text(EXPERIMENT)
    config = ExperimentConfig.read(path)
    run_with_control(config, out)
    best = json.loads((out / "control" / "config.json").read_text())
    assert best["train"]["method"] == "fixed"
    assert 4 <= best["options"]["width"] < 12
    control = read_results(out / "control" / "results.csv")
    assert control["trial_id"].nunique() == 1
    assert control["epoch"].tolist() == [1, 2, 3, 4]
    assert control["hyperparameters/dropout"].tolist() == [0.1] * 4
    before = (out / "results.csv").stat().st_mtime_ns
    shutil.rmtree(out / "control")
    assert main(["status", str(out)]) == 0
    assert "its control is waiting" in capsys.readouterr().out
    with pytest.raises(ResumeError, match=r"`train.epochs` must be the same"):
        run_with_control(ExperimentConfig.read(path, ["train.epochs=5"]), out, resume=True)
    run_with_control(config, out, resume=True)
    assert (out / "results.csv").stat().st_mtime_ns == before
    assert read_results(out / "control" / "results.csv")["epoch"].tolist() == [1, 2, 3, 4]
