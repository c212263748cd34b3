"""The train step and the hyper step of a run, from its objective, optimisers and settings."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import nn

from ray_deltastn.methods import ImplicitSteps, Objective, StepOptions, Steps, UnrolledSteps, Workers
from ray_deltastn.training.capture.graphs import GraphedSteps
from ray_deltastn.training.capture.recorders import CudaRecorder, TraceRecorder
from ray_deltastn.training.checks import uses_batch_statistics
from ray_deltastn.training.optimizers import Optimizers
from ray_deltastn.training.settings import Settings


def make_steps(
    objective: Objective, optimizers: Optimizers, settings: Settings, workers: Workers
) -> Steps | GraphedSteps:
    """The steps of the objective's method."""
    given = {field.name: getattr(settings, field.name) for field in fields(StepOptions)}
    parts = settings.parts(uses_batch_statistics(objective.model), workers.size)
    options = StepOptions(**{**given, "sub_batches": parts})
    weights, response, hyper = optimizers.weights, optimizers.response, optimizers.hyper
    if objective.method.hypergradient in ("implicit", "unrolled"):
        assert hyper is not None
        if objective.method.hypergradient == "unrolled":
            return UnrolledSteps(objective, weights, hyper, options, window=settings.train_interval)
        return ImplicitSteps(
            objective,
            weights,
            hyper,
            options,
            window=settings.train_interval,
            solver=settings.implicit_solver,
            iterations=settings.implicit_steps,
            damping=settings.implicit_damping,
        )
    steps = Steps(objective, weights, response, hyper, options, workers if workers.size > 1 else None)
    device = objective.space.lam.device
    if not settings.captures(device):
        return steps
    drawn = [] if objective.generator is None else [objective.generator]
    recorder = CudaRecorder(device, drawn) if device.type == "cuda" else TraceRecorder()
    return GraphedSteps(steps, recorder, must=settings.graph == "on")


def placed(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The model on its device; with `channels_last`, weights of 2-d convolutions are in channels-last memory order."""
    model = model.to(device)
    if channels_last:
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
