"""Trials that fail: the last line says with which error."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch.nn.functional as F
from ray.exceptions import ActorDiedError, RayTaskError

from ray_deltastn.cli import main
from ray_deltastn.tune.experiment import reason_of
from tests.tune.tiny import build

CONFIG = """
task: tests.tune.tiny:build
train: {epochs: 6, batch_size: 16, warmup: 1}
options: {fault: raise}
search: {lr: "loguniform(0.01, 0.3)"}
tune: {searcher: random, num_samples: 2, max_failures: 0}
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "compare"])
def test_if_every_trial_fails_the_last_line_is_the_error_of_the_first(command, tmp_path, capsys, ray_cluster):
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    content = CONFIG if command == "run" else CONFIG.split("tune:")[0] + "single: {lr: 0.1}\ntune: {max_failures: 0}\n"
    config.write_text(content)
    more = [] if command == "run" else ["--methods", "fixed", "--seeds", "1"]
    assert main([command, str(config), "--out", str(out), *more]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("ray-deltastn: all ")
    assert "RuntimeError: a fault on demand" in line
    assert "error.txt" in line


def sums(config):
    """A task whose loss is a sum."""
    return replace(build(config), loss=lambda output, y: F.cross_entropy(output, y, reduction="sum"))


def doubles(config):
    """A task whose training inputs are not of the type of the model."""
    task = build(config)
    return replace(task, train=(task.train[0].double(), task.train[1]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"task={__name__}:sums", ["`loss` must return a mean"]),
        (f"task={__name__}:doubles", ["`train`", "float32, got float64"]),
        ("train={method: fixed, hyperparameters: {decay: '0.1'}}", ["'0.1', a text", "'decay'"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_task_that_does_not_fit_is_refused_before_any_trial(command, override, words, tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG if command == "run" else CONFIG.split("tune:")[0] + "single: {lr: 0.1}\n")
    if command == "compare" and "decay" in override:
        pytest.skip("a comparison has no constants")
    assert main([command, str(config), "--out", str(tmp_path / "out"), "--set", override]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def trial(error, text=""):
    return SimpleNamespace(get_pickled_error=lambda: error, get_error=lambda: text)


class WorkerError(Exception):
    """What Ray gives for an error in a worker."""

    def __init__(self, cause):
        super().__init__("a traceback\nof many lines")
        self.cause = cause


NOT_SET_UP = RayTaskError("setup", "Traceback\n  in setup\nValueError: a rule", ValueError("a rule"), ip="", pid=1)


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (trial(WorkerError(ValueError("a rule\nin two lines"))), "ValueError: a rule in two lines"),
        (trial(WorkerError(KeyError("name"))), "KeyError: 'name'"),
        (trial(RuntimeError("The actor died.\nIts node is gone.")), "The actor died."),
        (trial(ActorDiedError(NOT_SET_UP)), "ValueError: a rule"),
        (trial(None, "Failure # 1 (at 3)\nold\nFailure # 2 (at 4)\nTraceback\nTypeError: new\n"), "TypeError: new"),
        (trial(None, None), "None"),
        (trial(None, ""), "no message"),
    ],
    ids=["lines", "key", "dead-worker", "setup", "text", "nothing", "empty"],
)
def test_the_reason_of_a_failure_takes_one_line(failed, reason):
    assert reason_of(failed) == reason
