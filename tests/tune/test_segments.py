"""Trials on segments of a corpus: checkpoints inside a pass, and the check of a task before an experiment."""

import pytest
import torch

from ray_deltastn import DeltaSTNTrainable
from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.task_check import check_task
from tests.training.recurrent import build
from tests.tune.tiny import finish

TASK = "tests.training.recurrent:build"
CONFIG = {"task": TASK, "epochs": 3, "lr": 0.2, "warmup": 0, "train_interval": 2, "steps_per_report": 4, "seed": 3}


@pytest.mark.parametrize("method", ["fixed", "stn", "delta-stn"])
def test_a_trial_restored_inside_a_pass_ends_bit_identically(method, tmp_path):
    config = {**CONFIG, "method": method}
    unbroken = finish(DeltaSTNTrainable(config))
    broken = DeltaSTNTrainable(config)
    broken.train()
    broken.save(str(tmp_path))
    torch.manual_seed(99)
    resumed = DeltaSTNTrainable(config)
    resumed.restore(str(tmp_path))
    assert finish(resumed) == unbroken[1:]


def test_the_check_of_an_experiment_counts_the_segments():
    train = {name: value for name, value in CONFIG.items() if name not in ("task", "steps_per_report")}
    config = ExperimentConfig(task=TASK, train={**train, "steps_per_report": 4, "method": "delta-stn"})
    found = check_task(config)
    assert set(found.space) == {"dropout", "decay"}
    assert found.reports == 5  # 3 epochs of 6 segments


def test_the_size_of_a_corpus_is_shown_in_tokens():
    assert "130 tokens train, 70 tokens valid, 40 tokens test" in repr(build({}))
