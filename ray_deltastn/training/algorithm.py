"""The train step and the hyper step of a run, from its objective, optimisers and settings, and its arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from ray_deltastn.methods import ImplicitSteps, Objective, Steps, UnrolledSteps
from ray_deltastn.training.capture.graphs import CudaRecorder, GraphedSteps, TapeRecorder
from ray_deltastn.training.optimizers import Optimizers
from ray_deltastn.training.settings import Settings


def make_steps(objective: Objective, optimizers: Optimizers, settings: Settings) -> Steps:
    """The algorithm of the objective's method."""
    moved = (objective, optimizers.weights, optimizers.response, optimizers.hyper)
    options: dict[str, Any] = {
        name: getattr(settings, name)
        for name in ("entropy_weight", "response_fraction", "antithetic", "tune_scale", "clip_grad")
    }
    if objective.method.hypergradient == "implicit":
        return ImplicitSteps(
            *moved,
            window=settings.train_interval,
            solver=settings.implicit_solver,
            iterations=settings.implicit_steps,
            damping=settings.implicit_damping,
            **options,
        )
    if objective.method.hypergradient == "unrolled":
        return UnrolledSteps(*moved, window=settings.train_interval, **options)
    device = objective.space.lam.device
    if settings.captures(device):
        generator = objective.setting.generator
        drawn = [] if generator is None else [generator]
        recorder = CudaRecorder(device, drawn) if device.type == "cuda" else TapeRecorder()
        return GraphedSteps(*moved, recorder=recorder, must=settings.graph == "on", **options)
    return Steps(*moved, **options)


def placed(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The model on its device, the weights of its 2-d convolutions in channels-last order of memory if so asked."""
    model = model.to(device)
    if channels_last:
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


@contextmanager
def float32_products(tf32: bool, device: torch.device) -> Iterator[None]:
    """Let float32 products and convolutions round to TF32 while inside, or keep them from it.

    Args:
        tf32: whether they may; convolutions on a GPU otherwise do by PyTorch's default.
        device: the training device; nothing but the products' switch is touched for a CPU.
    """
    convolutions = device.type == "cuda"
    before = _older_switches()
    if before is not None:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        if convolutions:
            torch.backends.cudnn.allow_tf32 = tf32
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            if convolutions:
                torch.backends.cudnn.allow_tf32 = before[1]
        return
    names = ("cuda.matmul", "mkldnn.matmul", *(("cudnn.conv", "cudnn.rnn") if convolutions else ()))
    switches = [attrgetter(name)(torch.backends) for name in names]
    kept = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, kept, strict=True):
            switch.fp32_precision = precision


def _older_switches() -> tuple[str, bool] | None:
    """Products' and convolutions' switch, or None where the program uses `fp32_precision`, which excludes them."""
    if getattr(torch.backends, "fp32_precision", "none") != "none":
        return None
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None
