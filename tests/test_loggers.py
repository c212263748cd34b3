"""The examples of the page about loggers run offline; each needs its package."""

import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tune.event_files import scalars

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "loggers.md").read_text()
NAMES = ("valid_loss", "hyperparameters/input_dropout", "scale/weight_decay")


def run(section, number):
    """Run the common example and one of a section."""
    common, *sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (own,) = [text for text in sections if text.startswith(section)]
    namespace = {"__name__": "__main__"}
    for code in (_blocks(common)[0], _blocks(own)[number]):
        exec(compile(code, "docs/loggers.md", "exec"), namespace)
    return namespace


def _blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(tmp_path),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }.items():
        monkeypatch.setenv(variable, value)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    run("TensorBoard", 0)
    (path,) = (tmp_path / "runs" / "digits").glob("events.out.tfevents.*")
    shown = scalars(path)
    for name in NAMES:
        steps, values = zip(*shown[name], strict=True)
        assert len(values) == 3
        assert all(map(math.isfinite, values))
        assert list(steps) == sorted(steps)


def test_wandb(tmp_path):
    pytest.importorskip("wandb")
    run("Weights", 0)
    _has_wandb_run(tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_wandb_with_tune(tmp_path):
    pytest.importorskip("wandb")
    # The process that writes gets its environment from the cluster, so the cluster must start with it.
    code = """
import ray
from tests.test_loggers import run
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
run("Weights", 1)
"""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    more = {"PYTHONPATH": paths, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **more}, capture_output=True)
    _has_wandb_run(tmp_path)


def _has_wandb_run(folder):
    (file,) = folder.rglob("offline-run-*/*.wandb")
    end = time.monotonic() + 180  # the service is slow while other tests run
    while not all(name.encode() in file.read_bytes() for name in NAMES):
        assert time.monotonic() < end, "the service of wandb, which outlives its run, did not write the reports"
        time.sleep(0.2)


def test_mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run("MLflow", 0)
    _has_mlflow_run(mlflow, "sqlite:///runs.db")


def test_mlflow_with_tune(ray_cluster, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run("MLflow", 1)
    _has_mlflow_run(mlflow, "sqlite:///tune.db")


def _has_mlflow_run(mlflow, address):
    client = mlflow.tracking.MlflowClient(address)
    experiment = client.get_experiment_by_name("digits")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params["lr"] == "0.05"
    for name in NAMES:
        assert len(client.get_metric_history(found.info.run_id, name)) == 3
