"""The train step and the hyper step of a run, from its objective, optimisers and settings."""

from __future__ import annotations

from typing import Any

from ray_deltastn.methods import ImplicitSteps, Objective, Steps, UnrolledSteps
from ray_deltastn.optimizers import Optimizers
from ray_deltastn.settings import Settings


def make_steps(objective: Objective, optimizers: Optimizers, settings: Settings) -> Steps:
    """The algorithm of the objective's method."""
    moved = (objective, optimizers.weights, optimizers.response, optimizers.hyper)
    options: dict[str, Any] = {
        name: getattr(settings, name) for name in ("entropy_weight", "response_fraction", "tune_scale", "clip_grad")
    }
    if objective.method.hypergradient == "implicit":
        return ImplicitSteps(
            *moved, window=settings.train_interval, solver=settings.implicit_solver,
            iterations=settings.implicit_steps, damping=settings.implicit_damping, **options,
        )  # fmt: skip
    if objective.method.hypergradient == "unrolled":
        return UnrolledSteps(*moved, window=settings.train_interval, **options)
    return Steps(*moved, **options)
