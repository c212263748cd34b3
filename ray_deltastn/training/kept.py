"""Contexts of passes before the first step, after which the model and the random numbers are as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ray_deltastn.methods import Objective, RunningStatistics


@contextmanager
def kept_model(model: nn.Module) -> Iterator[None]:
    """Context that leaves the modes and the buffers of a model as they were, such as running statistics."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with RunningStatistics(model).held():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer  # a module may put another tensor in its place
                buffer.copy_(before)


@contextmanager
def kept_generator(objective: Objective) -> Iterator[None]:
    """Context that leaves the random generator of the run as it was."""
    generator = objective.generator
    state = None if generator is None else generator.get_state()
    try:
        yield
    finally:
        if generator is not None and state is not None:
            generator.set_state(state)
