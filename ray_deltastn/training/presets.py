"""Presets: named values of the options that are not given."""

from __future__ import annotations

from typing import Literal, TypedDict

from ray_deltastn.domains import DomainsName
from ray_deltastn.methods import HyperPass, Method
from ray_deltastn.training.options import PresetName, ResponseOptimizerName


class Preset(TypedDict):
    """Values of the options that are not given; see `Settings` for their meaning."""

    domains: DomainsName
    response_optimizer: ResponseOptimizerName | None
    response_fraction: float
    antithetic: bool
    perturbations: int
    sub_batches: int | Literal["auto"]
    per_scale: bool
    hyper_pass: HyperPass
    response_clip: float | None
    hyper_clip: float | None
    hyper_lr: float | Literal["auto"]
    hyper_decay: float
    warmup: float | Literal["auto"]


PRESETS: dict[PresetName, Preset] = {
    "recommended": {
        "domains": "clamped",
        "response_optimizer": "rmsprop",
        "response_fraction": 1.0,
        "antithetic": True,
        "perturbations": 1,
        "sub_batches": "auto",
        "per_scale": True,
        "hyper_pass": "network",
        "response_clip": 1.0,
        "hyper_clip": 2.0,
        "hyper_lr": "auto",
        "hyper_decay": 0.1,
        "warmup": 5.0,
    },
    "paper": {
        "domains": "open",
        "response_optimizer": None,
        "response_fraction": 1.0,
        "antithetic": False,
        "perturbations": 1,
        "sub_batches": 1,
        "per_scale": False,
        "hyper_pass": "linearized",
        "response_clip": None,
        "hyper_clip": None,
        "hyper_lr": 0.01,
        "hyper_decay": 1.0,
        "warmup": 5.0,
    },
}
#: Options of methods that do not train Θ apart from w₀, in every preset.
WHOLE = {"response_fraction": 1.0, "antithetic": False, "perturbations": 1, "sub_batches": 1, "per_scale": False}


def values_of(preset: object, method: Method) -> dict[str, object]:
    """Values of a preset for a method.

    Raises:
        ValueError: if there is no preset of this name.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        hint = "; 'recommended' has taken its place" if preset == "fast" else ""
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}{hint}")
    chosen: dict[str, object] = dict(PRESETS[preset])
    return chosen if method.trains_apart else {**chosen, **WHOLE, "response_optimizer": None}
