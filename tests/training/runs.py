"""A small run, what it reports and what it holds, for the tests of training."""

import io
import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ray_deltastn as rd
from ray_deltastn.methods import METHODS as ALL_METHODS

TUNING = [name for name, method in ALL_METHODS.items() if method.responds]
#: Methods for any hyperparameter; `ift` and `unrolled`, for penalties only, have tests of their own.
METHODS = {name: method for name, method in ALL_METHODS.items() if method.responds or not method.tunes}
STEPS = 7  # train steps in an epoch: 100 examples in batches of 16


def examples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, :3] + 0.5 * torch.randn(count, 3, generator=generator)).argmax(1)


class Noisy(Dataset):
    """Examples whose transform draws from the global generators, PyTorch's and Python's."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + 0.1 * torch.randn(6) + 0.1 * random.random(), self.y[index]


def as_tensors(x, y):
    return x, y


def as_noisy_loader(x, y):
    return DataLoader(Noisy(x, y), batch_size=16, shuffle=True)


def as_generator_loader(x, y):
    # A generator in an unknown state, as a user's program leaves it.
    generator = torch.Generator().manual_seed(random.randrange(2**40))
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=generator)


DATA = {
    "tensors": as_tensors,
    "noisy-loader": as_noisy_loader,
    "generator-loader": as_generator_loader,
    "plain-dropout": as_tensors,
}


OPTIMISERS = {
    "sgd-response": {"response_optimizer": "sgd"},
    "sgd-cosine": {"optimizer": "sgd", "lr": 0.05, "schedule": "cosine"},
    "adam-plateau": {
        "optimizer": "adam",
        "lr": 0.02,
        "schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "threshold": 0.2},
    },
    "adamw-multistep": {
        "optimizer": "adamw",
        "lr": 0.02,
        "hyper_optimizer": "adam",
        "schedule": {"name": "multistep", "milestones": [1, 3], "gamma": 0.3},
    },
    "sgd-step": {"optimizer": "sgd", "lr": 0.05, "schedule": {"name": "step", "step_size": 1, "gamma": 0.5}},
}


def make_space(**changes):
    hyperparameters = {
        "first": rd.Bounded(0.2, low=0.0, high=0.9),
        "second": rd.Bounded(0.1, low=0.0, high=0.9, per="batch"),
        "decay": rd.Positive(1e-3),
        **changes,
    }
    return rd.HyperSpace(**hyperparameters)


def make_model(plain_dropout=False):
    middle = nn.Dropout(0.3) if plain_dropout else nn.Identity()
    return nn.Sequential(rd.Dropout("first"), nn.Linear(6, 8), nn.ReLU(), middle, rd.Dropout("second"), nn.Linear(8, 3))


def make_task(data="tensors", space=None, **changes):
    torch.manual_seed(11)
    given = {
        "space": space or make_space(),
        "model": make_model(data == "plain-dropout"),
        "loss": F.cross_entropy,
        "train": DATA[data](*examples(100, 1)),
        "valid": DATA[data](*examples(40, 2)),
        "test": examples(30, 3),
        "penalty": rd.L2("decay"),
        **changes,
    }
    return rd.Task(**given)


def make_tuner(task=None, method="delta-stn", **settings):
    given = {
        "epochs": 4,
        "batch_size": 16,
        "lr": 0.05,
        "hyper_lr": 0.05,
        "train_interval": 3,
        "warmup_steps": 4,
        **settings,
    }
    return rd.SelfTuner(task or make_task(), method=method, **given)


def without_seconds(report):
    return {key: value for key, value in report.items() if not key.startswith("seconds/")}


def reports_of(tuner):
    return [without_seconds(report) for report in tuner.fit()]


def tensors_of(tuner):
    """λ, σ, w₀ with its buffers, and Θ, by name."""
    found = {"lam": tuner.space.lam.detach(), "raw_scale": tuner.space.raw_scale.detach()}
    found.update({f"model.{name}": value for name, value in tuner.model.state_dict().items()})
    if tuner.response is not None:
        found.update({f"response.{name}": value for name, value in tuner.response.state_dict().items()})
    return {name: value.clone() for name, value in found.items()}


def assert_same_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), f"{name} differs"


def assert_same_reports(actual, expected):
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.keys() == theirs.keys()
        different = {key: (mine[key], theirs[key]) for key in theirs if mine[key] != theirs[key]}
        assert not different, f"at step {theirs['steps']}"


def to_bytes(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def from_bytes(content):
    return torch.load(io.BytesIO(content), weights_only=True)


def scramble_global_generators(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class NaNAfter:
    """Cross entropy that turns to NaN after some training minibatches."""

    def __init__(self, calls, value=math.nan):
        self.calls, self.value = calls, value

    def __call__(self, output, target):
        loss = F.cross_entropy(output, target)
        if output.requires_grad and not output.is_leaf:  # a leaf is a try of the loss alone
            self.calls -= 1
        return loss * self.value if self.calls < 0 else loss
