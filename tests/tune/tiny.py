"""A small task whose trial takes less than a second, with faults for tests."""

import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd


def build(config):
    """A perceptron on random clusters; `config["fault"]` raises, kills or gives NaN in the third epoch."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (96,), generator=generator)
    x = torch.randn(96, 6, generator=generator) + 2 * F.one_hot(y, 6)
    space = rd.HyperSpace(dropout=rd.Bounded(0.1, low=0.0, high=0.9), decay=rd.Positive(1e-3))
    width = config.get("width", 8)
    model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), rd.Dropout("dropout"), nn.Linear(width, 3))
    data = {"train": (x[:64], y[:64]), "valid": (x[64:80], y[64:80]), "test": (x[80:], y[80:])}
    return rd.Task(
        space=space, model=model, loss=_faulty(config), valid_loss=F.cross_entropy, penalty=rd.L2("decay"), **data
    )


def _faulty(config):
    calls = 0

    def loss(output, target):
        nonlocal calls
        calls += torch.is_grad_enabled()
        time.sleep(config.get("slow", 0))
        value = F.cross_entropy(output, target)
        if calls < 20:
            return value
        if config.get("fault") == "raise":
            raise RuntimeError("a fault on demand")
        if config.get("fault") == "nan":
            return value * float("nan")
        if config.get("fault") == "kill":
            mark = Path(config["mark"])
            if not mark.exists():
                mark.touch()
                os._exit(1)
        return value

    return loss


CONFIG = {"task": build, "epochs": 5, "batch_size": 16, "lr": 0.1, "warmup": 1, "hyper_lr": 0.1, "seed": 3}


def without_times(report):
    """The columns of a report that do not depend on time or on Tune."""
    keep = (
        "loss",
        "accuracy",
        "hyperparameters",
        "scale",
        "epoch",
        "steps",
        "lr",
        "warning",
        "diverged",
        "stop_reason",
    )
    flat = {}
    for key, value in report.items():
        if isinstance(value, dict):
            flat.update({f"{key}/{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    return {key: value for key, value in flat.items() if any(part in key for part in keep) and "config" not in key}


def finish(trial):
    """All reports of a trial that is run to its end in this process."""
    reports = [trial.train()]
    while not reports[-1]["done"]:
        reports.append(trial.train())
    return [without_times(report) for report in reports]
