"""A small run whose steps may be captured, for the tests of graphs and traces."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd

LEARNED = pytest.mark.parametrize("method", ["fixed", "stn", "centered-stn", "delta-stn"])


def make_tuner(method, device="cpu", layer=None, loss=F.cross_entropy, **settings):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(44, 6, generator=generator)
    y = x[:, :3].argmax(1)
    torch.manual_seed(0)
    layer = nn.Identity() if layer is None else copy.deepcopy(layer)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), layer, rd.Dropout("dropout"), nn.BatchNorm1d(8), nn.Linear(8, 3))
    space = rd.HyperSpace(dropout=rd.Bounded(0.3, low=0.0, high=0.9), decay=rd.Positive(1e-3))
    task = rd.Task(
        space=space, model=model, loss=loss, train=(x, y), valid=(x, y), penalty=[rd.L2("decay")]
    )  # 44 examples: the last of three minibatches is smaller
    given = {"epochs": 6, "batch_size": 16, "lr": 0.05, "hyper_lr": 0.05, "warmup": 1, "train_interval": 2, **settings}
    return rd.SelfTuner(task, method=method, device=device, **given)


def told(reports):
    return [{k: v for k, v in report.items() if not k.startswith("seconds/")} for report in reports]


SCHEDULES = {
    "constant": {},
    "step": {"schedule": {"name": "step", "step_size": 2, "gamma": 0.5}},
    "clip": {"clip_grad": 0.5},
    "adam": {"optimizer": "adam", "hyper_optimizer": "adam", "clip_grad": 0.5},
}


def parts(tuner):
    response = [] if tuner.response is None else tuner.response.parameters()
    return [*tuner.model.state_dict().values(), *response, tuner.space.lam, tuner.space.raw_scale]
