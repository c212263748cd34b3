"""Live progress in a terminal, in a notebook and in plain output."""

import io
import pickle
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from ray_deltastn.tune import progress as progress_module
from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.progress import Progress


def report(epoch, dropout, loss=0.5, done=False):
    return {
        "epoch": epoch,
        "valid_loss": loss,
        "best_valid_loss": loss,
        "hyperparameters/dropout": dropout,
        "done": done,
    }


def show(terminal, width=160):
    out = io.StringIO()
    progress = Progress(["lr", "inner.rate"], 2, Console(file=out, force_terminal=terminal, width=width), every=0.0)
    trial = SimpleNamespace(trial_id="a", config={"lr": 0.25, "inner": {"rate": 7}})
    progress.setup()
    progress.on_trial_result(0, [], trial, report(1, 0.05))
    progress.on_trial_result(1, [], trial, report(9, 0.31, 0.125, done=True))
    progress.on_trial_error(1, [], SimpleNamespace(trial_id="b", config={"lr": 0.5, "inner": {"rate": 8}}))
    progress.on_experiment_end([])
    return progress, out.getvalue()


def test_a_terminal_shows_first_and_last_hyperparameters():
    progress, text = show(terminal=True)
    for part in ("0.05→0.31", "0.1250", "0.25", "done", "failed", "1/2", "2/2", "2 of 2 trials ended", "dropout"):
        assert part in text, part
    assert progress._live is None


@pytest.mark.parametrize(("width", "gone"), [(70, "inner.rate"), (44, "state"), (30, "dropout")])
def test_a_narrow_terminal_shows_fewer_columns_without_truncation(width, gone):
    _, text = show(terminal=True, width=width)
    assert gone not in text
    assert "…" not in text
    assert "best" in text
    assert "2/2" in text


def test_without_a_terminal_each_trial_is_printed_as_lines():
    _, text = show(terminal=False)
    lines = text.strip().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("trial 1/2  state done  epoch 9  valid loss 0.1250")
    assert "lr 0.25  inner.rate 7  dropout 0.05→0.31" in lines[1]
    assert "state failed" in lines[2]


class FakeNotebook:
    """`IPython.display` that records the displayed objects and their updates."""

    def __init__(self):
        self.shown, self.updates = [], []
        self.__spec__ = object()

    def display(self, thing, display_id):
        assert display_id is True
        self.shown.append(thing)
        return SimpleNamespace(update=self.updates.append)


def test_a_notebook_shows_one_table_with_few_updates_per_second(monkeypatch):
    notebook, out, clock = FakeNotebook(), io.StringIO(), [0.0]
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    progress = Progress(["lr"], 2, Console(file=out, force_jupyter=True), every=0.0)
    progress.setup()
    trial = SimpleNamespace(trial_id="a", config={"lr": 0.25})
    for number in range(100):
        clock[0] += 0.0101
        progress.on_trial_result(number, [], trial, report(number, 0.05 + number / 1000))
    assert (len(notebook.shown), len(notebook.updates)) == (1, 4)
    progress.on_trial_result(100, [], trial, report(100, 0.4, 0.125, done=True))
    assert len(notebook.updates) == 5  # the end of a trial is shown immediately
    progress.close()
    progress.close()
    assert len(notebook.updates) == 6
    assert out.getvalue() == ""
    html = notebook.updates[-1]._repr_mimebundle_(None, None)["text/html"]
    for part in ("0.05→0.4", "0.1250", "done", "1 of 2 trials ended"):
        assert part in html


def test_a_jupyter_console_without_ipython_has_no_live_table(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setattr(progress_module.importlib.util, "find_spec", lambda name: None)
    progress = Progress(["lr"], 2, Console(file=io.StringIO(), force_jupyter=True), every=0.0)
    progress.setup()
    assert progress._live is None


def test_progress_can_be_pickled_with_the_experiment():
    progress, _ = show(terminal=True)
    copy = pickle.loads(pickle.dumps(progress))
    assert (copy.searched, copy.trials, copy.every) == (["lr", "inner.rate"], 2, 0.0)


def test_param_space_has_each_domain_under_the_key_that_a_trial_reads():
    config = ExperimentConfig.model_validate(
        {
            "task": "digits-mlp",
            "train": {"method": "fixed", "epochs": 3, "hyperparameters": {"weight_decay": 0.1}},
            "search": {
                "lr": "loguniform(0.01, 0.3)",
                "options.width": "randint(8, 64)",
                "hyperparameters.input_dropout": "uniform(0.0, 0.85)",
            },
            "tune": {"cpu": 2},
        }
    )
    space = config.param_space()
    assert (space["lr"].lower, space["lr"].upper) == (0.01, 0.3)
    assert (space["width"].lower, space["width"].upper) == (8, 64)
    assert space["hyperparameters"]["weight_decay"] == 0.1
    assert space["hyperparameters"]["input_dropout"].upper == 0.85
    assert space["resources"] == {"cpu": 2, "gpu": 0}
    assert config.train["hyperparameters"] == {"weight_decay": 0.1}
