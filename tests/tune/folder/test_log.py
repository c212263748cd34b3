"""The log of reports names functions; an address in memory would say nothing in another process."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ray_deltastn.tasks import find_task
from ray_deltastn.tasks.names import name_of
from ray_deltastn.tune.folder.log import read_log
from ray_deltastn.tune.folder.report_log import ReportLog
from tests.tune.tiny import build


class Builder:
    """A task as an object that is called."""

    def __call__(self, config):
        return build(config)


def logged(config, tmp_path):
    log = ReportLog(tmp_path)
    log.on_trial_result(0, [], SimpleNamespace(trial_id="a", config=config), {"training_iteration": 1})
    return read_log(tmp_path)["a"][0].config


def test_a_task_function_is_recorded_so_that_it_can_be_imported(tmp_path):
    config = logged({"task": build, "lr": np.float64(0.5), "scale": torch.tensor(2.0)}, tmp_path)
    assert config == {"task": "tests.tune.tiny:build", "lr": 0.5, "scale": 2.0}
    assert find_task(config["task"]) is build


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (nn.ReLU, "torch.nn.modules.activation:ReLU"),
        (Builder(), f"{__name__}:Builder"),
        (functools.partial(build, width=3), "partial(tests.tune.tiny:build, width=3)"),
        (functools.partial(map, build), "partial(builtins:map, tests.tune.tiny:build)"),
        ("digits-mlp", "digits-mlp"),
    ],
    ids=["class", "object", "partial", "partial-of-a-function", "text"],
)
def test_no_name_is_an_address(value, name):
    assert name_of(value) == name
    assert " at 0x" not in str(name_of(value))
