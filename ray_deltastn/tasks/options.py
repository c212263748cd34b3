"""Functions that read the options of ready tasks from a trial's config and check them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ray_deltastn.domains import Hyperparameter
from ray_deltastn.training.rules import shown


def whole(config: Mapping[str, Any], name: str, default: int, least: int = 0) -> int:
    """Read an option that is a whole number of at least `least`.

    Raises:
        ValueError: if the option has another value.
    """
    given = config.get(name, default)
    value = _number(given)
    if not (value >= least and value % 1 == 0):
        raise ValueError(f"`{name}` must be a whole number >= {least}, got {shown(given)}")
    return given if isinstance(given, int) else int(value)


def number(config: Mapping[str, Any], name: str, default: float) -> float:
    """Read an option that is a finite number.

    Raises:
        ValueError: if the option has another value.
    """
    value = _number(config.get(name, default))
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {shown(config[name])}")
    return value


def _number(value: Any) -> float:
    """A number, a NumPy number or a string with a number, as a float; NaN for any other value."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def flag(config: Mapping[str, Any], name: str) -> bool:
    """Read an option that is true or false. The default is false.

    Raises:
        ValueError: if the option has another value.
    """
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be true or false, got {value!r}")
    return value


def started(domains: Mapping[str, Hyperparameter], config: Mapping[str, Any]) -> dict[str, Hyperparameter]:
    """Domains with the `initial_values` (name → value) and the `perturbation_scale` (initial σ) of a config.

    Raises:
        ValueError: if `initial_values` names an unknown hyperparameter, or an option breaks its rule.
    """
    given = config.get("initial_values")
    scale = None if config.get("perturbation_scale") is None else number(config, "perturbation_scale", 1.0)
    initial = {} if given is None else given
    if scale is not None and not scale > 0:
        raise ValueError(f"`perturbation_scale > 0` must hold, got {scale}")
    if not isinstance(initial, Mapping):
        raise ValueError(f"`initial_values` must be a mapping of hyperparameters to values, got {initial!r}")
    for name in initial:
        if name not in domains:
            raise ValueError(
                f"`initial_values` must name hyperparameters of the task, got {name!r}; known are {', '.join(domains)}"
            )
    return {
        name: replace(domain, initial=initial.get(name, domain.initial), scale=domain.scale if scale is None else scale)
        for name, domain in domains.items()
    }


class Watched(dict[str, Any]):
    """A config that records the keys that a task reads, in `read`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Value of a key, or the default; the key is recorded."""
        self.read.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        # A loop over all keys may read any of them, and so may a copy of the config.
        self.read.update(super().keys())
        return super().__iter__()
