"""Δ-STN inside Ray Tune: each trial tunes its own regularisation online, by gradient (Bae & Grosse 2020).

The names are imported when they are first used, so that `import ray_deltastn` and the command start fast.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from ray_deltastn._version import __version__

if TYPE_CHECKING:
    from ray_deltastn import integrations, plot
    from ray_deltastn.domains import (
        Bounded,
        Hyperparameter,
        Integer,
        LowerBounded,
        Positive,
        Unbounded,
        UpperBounded,
    )
    from ray_deltastn.methods import Method, Workers
    from ray_deltastn.regularizers import (
        L2,
        ActivationPenalty,
        ChannelDropout,
        ColorJitter,
        Cutout,
        DropConnect,
        Dropout,
        EmbeddingDropout,
        GaussianNoise,
        RandomAffine,
        RandomHorizontalFlip,
        Regularizer,
        ScalingNoise,
        TemporalActivationPenalty,
        VariationalDropout,
        tune_dropouts,
    )
    from ray_deltastn.response import Coverage, Response, linearised_forward, register_kind
    from ray_deltastn.space import HyperSpace
    from ray_deltastn.task import Task
    from ray_deltastn.tasks.corpus import Corpus, read_corpus
    from ray_deltastn.training.options import Options
    from ray_deltastn.training.refit import refit
    from ray_deltastn.training.saved import load_schedule, load_weights
    from ray_deltastn.training.segments import Segments
    from ray_deltastn.training.settings import Settings
    from ray_deltastn.training.split_metrics import BitsPerCharacter, Perplexity, over_split
    from ray_deltastn.training.tuner import SelfTuner
    from ray_deltastn.training.warned import RunWarning
    from ray_deltastn.tune import DeltaSTNTrainable, ReadableConfig, SkOptSearch, TrialConfig, WarmStart

# The package logs nothing unless the user configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

#: Module → its names that the package offers. Only `tune` needs Ray.
_NAMES = {
    "domains": ("Bounded", "Hyperparameter", "Integer", "LowerBounded", "Positive", "Unbounded", "UpperBounded"),
    "methods": ("Method", "Workers"),
    "regularizers": (
        "L2",
        "ActivationPenalty",
        "ChannelDropout",
        "ColorJitter",
        "Cutout",
        "DropConnect",
        "Dropout",
        "EmbeddingDropout",
        "GaussianNoise",
        "RandomAffine",
        "RandomHorizontalFlip",
        "Regularizer",
        "ScalingNoise",
        "TemporalActivationPenalty",
        "VariationalDropout",
        "tune_dropouts",
    ),
    "response": ("Coverage", "Response", "linearised_forward", "register_kind"),
    "space": ("HyperSpace",),
    "task": ("Task",),
    "tasks.corpus": ("Corpus", "read_corpus"),
    "training.options": ("Options",),
    "training.refit": ("refit",),
    "training.saved": ("load_schedule", "load_weights"),
    "training.segments": ("Segments",),
    "training.settings": ("Settings",),
    "training.split_metrics": ("BitsPerCharacter", "Perplexity", "over_split"),
    "training.tuner": ("SelfTuner",),
    "training.warned": ("RunWarning",),
    "tune": ("DeltaSTNTrainable", "ReadableConfig", "SkOptSearch", "TrialConfig", "WarmStart"),
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
#: Parts that can be used as `ray_deltastn.PART` without an import of their own.
_PARTS = ("domains", "integrations", "maps", "methods", "plot", "regularizers", "response", "space", "task", "training")


if not TYPE_CHECKING:  # type checkers would accept every name

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
            return found
        if name in _PARTS:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_PARTS})


__all__ = [
    "L2",
    "ActivationPenalty",
    "BitsPerCharacter",
    "Bounded",
    "ChannelDropout",
    "ColorJitter",
    "Corpus",
    "Coverage",
    "Cutout",
    "DeltaSTNTrainable",
    "DropConnect",
    "Dropout",
    "EmbeddingDropout",
    "GaussianNoise",
    "HyperSpace",
    "Hyperparameter",
    "Integer",
    "LowerBounded",
    "Method",
    "Options",
    "Perplexity",
    "Positive",
    "RandomAffine",
    "RandomHorizontalFlip",
    "ReadableConfig",
    "Regularizer",
    "Response",
    "RunWarning",
    "ScalingNoise",
    "Segments",
    "SelfTuner",
    "Settings",
    "SkOptSearch",
    "Task",
    "TemporalActivationPenalty",
    "TrialConfig",
    "Unbounded",
    "UpperBounded",
    "VariationalDropout",
    "WarmStart",
    "Workers",
    "__version__",
    "integrations",
    "linearised_forward",
    "load_schedule",
    "load_weights",
    "over_split",
    "plot",
    "read_corpus",
    "refit",
    "register_kind",
    "tune_dropouts",
]
