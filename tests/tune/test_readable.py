"""What loggers get: readable configs, names of metrics, and one chart per hyperparameter."""

import functools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray import tune
from ray.tune import Callback
from ray.tune.logger import LoggerCallback
from ray.tune.utils import flatten_dict

import ray_deltastn as rd
from ray_deltastn import DeltaSTNTrainable
from ray_deltastn.tune.readable import readable
from tests.tune.event_files import scalars
from tests.tune.tiny import CONFIG, build

NAMES = ("dropout", "decay")
SPACE = {
    **CONFIG,
    "method": "fixed",
    "lr": tune.loguniform(0.01, 0.1),
    "hyperparameters": {"dropout": tune.uniform(0.1, 0.5)},
    "resources": {"cpu": 1},
}


class Recorder(LoggerCallback):
    """A logger that keeps what others send away: parameters at the start, metrics of each report."""

    def __init__(self):
        self.parameters, self.metrics, self.ended, self.finished = {}, {}, [], False

    def log_trial_start(self, trial):
        self.parameters[trial] = flatten_dict(trial.config)

    def log_trial_result(self, iteration, trial, result):
        self.metrics.setdefault(trial, []).append(flatten_dict(result))

    def log_trial_end(self, trial, failed=False):
        self.ended.append(trial)

    def on_experiment_end(self, trials, **info):
        self.finished = True


def fit(folder, callbacks, samples=2):
    results = tune.Tuner(
        DeltaSTNTrainable,
        param_space=SPACE,
        tune_config=tune.TuneConfig(metric="valid_loss", mode="min", num_samples=samples, max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=str(folder), name="run", callbacks=callbacks, verbose=0),
    ).fit()
    assert not results.errors
    return results


def test_a_function_in_the_config_has_a_name_and_metrics_have_theirs(tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "0")  # Tune adds TensorBoard
    recorder = Recorder()
    results = fit(tmp_path, [rd.ReadableConfig(recorder)])
    assert len(recorder.parameters) == len(recorder.metrics) == len(recorder.ended) == 2
    assert recorder.finished
    for trial, parameters in recorder.parameters.items():
        assert parameters["task"] == "tests.tune.tiny:build"
        assert {"lr", "method", "hyperparameters/dropout", "resources/cpu"} <= set(parameters)
        json.dumps(parameters)  # plain values only
        assert [report["training_iteration"] for report in recorder.metrics[trial]] == [1, 2, 3, 4, 5]
        for report in recorder.metrics[trial]:
            assert report["config/task"] == "tests.tune.tiny:build"
            for name in NAMES:
                for group in ("hyperparameters", "scale", "signal", "at_bound"):
                    assert isinstance(report[f"{group}/{name}"], float)
    assert all(result.config["task"] is build for result in results)  # the trial itself is unchanged
    # TensorBoard draws one chart for each tag, with a line for each trial.
    for result in results:
        (path,) = (tmp_path / "run").glob(f"*{result.metrics['trial_id']}*/events.out.tfevents.*")
        shown = scalars(path)
        assert {tag.rpartition("/")[2] for tag in shown if tag.startswith("ray/tune/hyperparameters/")} == set(NAMES)
        for name in NAMES:
            (value,) = {value for _, value in shown[f"ray/tune/hyperparameters/{name}"]}
            assert value == np.float32(result.metrics[f"hyperparameters/{name}"])


def test_mlflow_gets_names_of_functions_and_every_metric(tmp_path, ray_cluster):
    mlflow = pytest.importorskip("mlflow")
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    uri = f"sqlite:///{tmp_path}/runs.db"
    logger = MLflowLoggerCallback(tracking_uri=uri, experiment_name="tiny")
    fit(tmp_path, [rd.ReadableConfig(logger)], samples=1)
    client = mlflow.tracking.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["task"] == "tests.tune.tiny:build"
    assert {"lr", "hyperparameters/dropout"} <= set(run.data.params)
    assert {f"hyperparameters/{name}" for name in NAMES} <= set(run.data.metrics)
    assert len(client.get_metric_history(run.info.run_id, "valid_loss")) == CONFIG["epochs"]


def test_weights_and_biases_gets_names_of_functions_offline(tmp_path, ray_cluster, monkeypatch):
    pytest.importorskip("wandb")
    from ray.air.integrations.wandb import WandbLoggerCallback

    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLoggerCallback(project="tiny", dir=str(tmp_path), mode="offline")
    fit(tmp_path, [rd.ReadableConfig(logger)], samples=1)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = path.read_bytes()
    assert b"tests.tune.tiny:build" in content
    assert re.search(rb"<function \w+ at 0x", content) is None
    assert all(f"hyperparameters/{name}".encode() in content for name in NAMES)


class Plain:
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (build, "tests.tune.tiny:build"),
        (functools.partial(build, None), "tests.tune.tiny:build"),
        (torch.nn.Linear, "torch.nn.modules.linear:Linear"),
        (torch.nn.functional.relu, "torch.nn.functional:relu"),
        (Plain(), f"{Plain.__module__}:Plain"),
        (torch.float32, "torch.float32"),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (None, None),
        (True, True),
        ("text", "text"),
        ({"a": [build, 1], 2: (0.5,)}, {"a": ["tests.tune.tiny:build", 1], "2": [0.5]}),
    ],
)
def test_values_of_a_config_become_plain(value, expected):
    found = readable(value)
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found)


def test_every_hook_reaches_the_logger_with_the_same_trial():
    called = []

    class All(Callback):
        pass

    hooks = [name for name in dir(Callback) if name.startswith("on_")]
    for name in hooks:
        setattr(All, name, lambda self, name=name, **info: called.append((name, info)))
    logger = rd.ReadableConfig(All())
    trial = SimpleNamespace(trial_id="1", config={"task": build}, status="RUNNING")
    for name in hooks:
        getattr(logger, name)(iteration=1, trials=[trial], trial=trial)
    assert [name for name, _ in called] == hooks
    for _, info in called:
        assert info["trial"].config == {"task": "tests.tune.tiny:build"}
        assert info["trial"].status == "RUNNING"
        assert info["trials"] == [info["trial"]] == [trial]
    assert trial.config["task"] is build


def test_what_is_no_logger_is_refused():
    with pytest.raises(TypeError, match="`logger` must be a callback of Tune, got 3"):
        rd.ReadableConfig(3)
