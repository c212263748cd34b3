"""Δ-STN inside Ray Tune: each trial tunes its own regularisation online, by gradient (Bae & Grosse 2020)."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from ray_deltastn._version import __version__
from ray_deltastn.domains import (
    Bounded,
    Hyperparameter,
    Integer,
    LowerBounded,
    Positive,
    Unbounded,
    UpperBounded,
)
from ray_deltastn.methods import Method
from ray_deltastn.regularizers import (
    L2,
    ChannelDropout,
    ColorJitter,
    Cutout,
    Dropout,
    GaussianNoise,
    RandomAffine,
    RandomHorizontalFlip,
    Regularizer,
    ScalingNoise,
    tune_dropouts,
)
from ray_deltastn.response import Coverage, Response, linearised_forward
from ray_deltastn.space import HyperSpace
from ray_deltastn.task import Task
from ray_deltastn.training import (
    Options,
    RunWarning,
    SelfTuner,
    Settings,
    load_schedule,
    load_weights,
    over_split,
    refit,
)

if TYPE_CHECKING:
    from ray_deltastn import integrations, plot
    from ray_deltastn.tune import DeltaSTNTrainable, ReadableConfig, SkOptSearch, TrialConfig, WarmStart

# The package logs nothing unless the user configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

#: Names that need Ray; everything else works without it.
_NEEDS_RAY = ("DeltaSTNTrainable", "ReadableConfig", "SkOptSearch", "TrialConfig", "WarmStart")
#: Modules that are imported when they are first used.
_MODULES = ("integrations", "plot")


if not TYPE_CHECKING:  # type checkers would accept every name

    def __getattr__(name: str) -> Any:
        if name in _NEEDS_RAY:
            return getattr(importlib.import_module("ray_deltastn.tune"), name)
        if name in _MODULES:
            return importlib.import_module(f"ray_deltastn.{name}")
        raise AttributeError(f"module 'ray_deltastn' has no attribute {name!r}")


__all__ = [
    "L2",
    "Bounded",
    "ChannelDropout",
    "ColorJitter",
    "Coverage",
    "Cutout",
    "DeltaSTNTrainable",
    "Dropout",
    "GaussianNoise",
    "HyperSpace",
    "Hyperparameter",
    "Integer",
    "LowerBounded",
    "Method",
    "Options",
    "Positive",
    "RandomAffine",
    "RandomHorizontalFlip",
    "ReadableConfig",
    "Regularizer",
    "Response",
    "RunWarning",
    "ScalingNoise",
    "SelfTuner",
    "Settings",
    "SkOptSearch",
    "Task",
    "TrialConfig",
    "Unbounded",
    "UpperBounded",
    "WarmStart",
    "__version__",
    "integrations",
    "linearised_forward",
    "load_schedule",
    "load_weights",
    "over_split",
    "plot",
    "refit",
    "tune_dropouts",
]
