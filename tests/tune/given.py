"""A task on data that are given to it, and one that holds its data."""

import torch

import ray_deltastn as rd
from tests.tune.tiny import build

#: More than the limit, as float32.
NUMBERS = 2_600_000


def with_data(config, data, scale=1.0):
    """The small task on data that are given, which are larger than they need to be."""
    task = build(config)
    assert data.numel() == NUMBERS
    x, y = task.train
    return rd.Task(
        task.space,
        task.model,
        torch.nn.functional.cross_entropy,
        (scale * data[: x.numel()].view_as(x), y),
        task.valid,
        penalty=task.penalties[0],
    )


def numbers():
    return torch.randn(NUMBERS, generator=torch.Generator().manual_seed(5))


def large_closure():
    data = numbers()
    return lambda config: with_data(config, data)
