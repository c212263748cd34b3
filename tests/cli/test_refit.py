"""The command `refit` on a language model: its metrics, its texts, and the learning rate that a plateau has lowered."""

import argparse
import json

import pytest
import torch

pytest.importorskip("ray")

from ray_deltastn.cli import refit as command
from ray_deltastn.tasks import build_task
from ray_deltastn.training.in_force import up_to
from ray_deltastn.training.tuner import SelfTuner
from ray_deltastn.tune import finished
from ray_deltastn.tune.folder.layout import LOG_FILE, ResumeError
from tests.tasks import grammar

PLATEAU = {"name": "plateau", "factor": 0.5, "patience": 0}


class Best:
    """The results of an experiment with one trial."""

    def __init__(self, folder):
        self.best = {"trial_id": "a", "epoch": 2, "test_loss": 2.0, "test_accuracy": 0.5, "test_perplexity": 7.389}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of an experiment with one trial of two epochs, after which its learning rate fell."""
    options = {"path": str(grammar.folder(tmp_path / "texts")), "units": 4, "embedding": 4, "batch": 2, "length": 20}
    training = {"epochs": 2, "lr": 1.0, "momentum": 0.0, "warmup": 0.0, "seed": 3, "schedule": PLATEAU}
    config = {"task": "ptb-lstm", **options, **training}
    torch.manual_seed(0)
    task = build_task(config)
    tuner = SelfTuner(task, **training)
    for number, report in enumerate(tuner.fit(), start=1):
        result = {"training_iteration": number, "epoch": number, "lr": report["lr"]}
        with (tmp_path / LOG_FILE).open("a") as log:
            log.write(json.dumps({"trial_id": "a", "result": result, "config": config}) + "\n")
    (tmp_path / "identity.json").write_text(json.dumps(dict(task.identity)))
    found = up_to(tuner.schedule(), 2)
    monkeypatch.setattr(finished, "_newest_state", lambda *_: {})
    monkeypatch.setattr(finished, "schedule_of", lambda _: found)
    monkeypatch.setattr(command, "Results", Best)
    return tmp_path


def run(folder):
    command._refit(argparse.Namespace(folder=folder, of=None, use="schedule"))


def test_the_own_metrics_of_the_task_are_shown(folder, capsys):
    run(folder)
    assert "test perplexity: 7.3890 in the trial, " in capsys.readouterr().out


def test_texts_with_another_vocabulary_are_refused(folder):
    for path in (folder / "texts").iterdir():
        path.write_text(path.read_text().replace("cat", "cow"))
    with pytest.raises(ResumeError, match="must hold an experiment with the same vocabulary"):
        run(folder)


def test_a_population_that_changes_the_learning_rate_makes_no_fall(folder):
    lines = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    given = [(0.4, 0.4), (0.1, 0.1), (0.2, 0.1)]  # the rate of the trial's config, and that of the report
    log = [
        {
            "trial_id": "a",
            "result": {"training_iteration": n, "epoch": n, "lr": lr},
            "config": {**lines[0]["config"], "lr": own},
        }
        for n, (own, lr) in enumerate(given, start=1)
    ]
    (folder / LOG_FILE).write_text("".join(json.dumps(one) + "\n" for one in log))
    options = finished.FinishedTrial(folder, "a").refit_options
    assert options["schedule"] == {"name": "multistep", "milestones": [3], "gamma": 0.5}
