"""The tuner beside another loop: what the loop decides, and what follows from it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ray_deltastn as rd
from ray_deltastn.integrations.companion import Companion


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({}, 1e-4),
        ({"response_lr": 0.02}, 2e-3),
        ({"preset": "paper"}, 0.05),
        ({"preset": "paper", "response_lr": 0.02}, 0.02),
        ({"response_optimizer": "sgd"}, 0.05),
    ],
)
def test_the_learning_rate_of_the_response_follows_that_of_the_loop(options, rate):
    torch.manual_seed(0)
    x, y = torch.randn(32, 4), torch.randint(0, 3, (32,))
    model = nn.Sequential(nn.Linear(4, 8), rd.Dropout("dropout"), nn.Linear(8, 3))
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    space = rd.HyperSpace(dropout=rd.Bounded(0.3, low=0.0, high=0.9))
    task = rd.Task(space=space, model=model, loss=F.cross_entropy, train=loader, valid=(x, y))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    beside = Companion(task, "delta-stn", optimizer, steps_per_epoch=2, epochs=3, precision="fp32", options=options)
    (group,) = beside.optimizers.response.param_groups
    assert group["lr"] == pytest.approx(rate)
    for factor in (1.0, 0.5):
        beside.begin()
        beside.end(x[:16], y[:16], factor * 0.05)
        assert group["lr"] == pytest.approx(factor * rate)
