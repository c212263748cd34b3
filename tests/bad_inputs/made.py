"""Good parts of a small run, of which each test spoils one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
PAIR = (X, Y)


def space(**hyperparameters):
    return rd.HyperSpace(**(hyperparameters or {"rate": rd.Bounded(0.2, low=0.0, high=0.9)}))


def model(*layers):
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), *(layers or [rd.Dropout("rate")]), nn.Linear(5, 3))


def task(**changes):
    torch.manual_seed(0)
    given = {"space": space(), "model": None, "loss": F.cross_entropy, "train": PAIR, "valid": PAIR, **changes}
    given["model"] = given["model"] or model()
    return rd.Task(**given)


def tuner(method="delta-stn", changes=None, **settings):
    return rd.SelfTuner(task(**(changes or {})), method=method, **{"epochs": 2, "batch_size": 8, **settings})


def build(config):
    """Task of a trial."""
    return task()


def build_nothing(config):
    """Forgets to return."""


NOT_CALLABLE = 3


class Doubled(torch.autograd.Function):
    """A function with a rule for the backward pass and none for forward mode."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(context, inputs, output):
        pass

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient


class Doubling(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


class OneWay(nn.Module):
    """A layer without a forward-mode rule between layers that respond."""

    def __init__(self):
        super().__init__()
        self.before, self.memory = nn.Linear(4, 4), Doubling()
        self.dropout, self.after = rd.Dropout("rate"), nn.Linear(4, 3)

    def forward(self, x):
        return self.after(self.dropout(self.memory(self.before(x))))


def more_hyperparameters():
    hyperparameters = {"rate": rd.Bounded(0.2, low=0.0, high=0.9), "decay": rd.Positive(1e-3)}
    return tuner(changes={"space": space(**hyperparameters), "penalty": rd.L2("decay")})


def other_model():
    return tuner(changes={"model": nn.Sequential(nn.Linear(4, 6), rd.Dropout("rate"), nn.ReLU(), nn.Linear(6, 3))})


def assert_refused(call, error, words):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    missing = [word for word in words if word not in text]
    assert not missing, text
    return caught.value
