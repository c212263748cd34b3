"""Options of ready tasks, read from a trial's config with their rule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ray_deltastn.domains import Hyperparameter


def whole(config: Mapping[str, Any], name: str, default: int, least: int = 0) -> int:
    """A whole number of at least `least`.

    Raises:
        ValueError: if it is anything else.
    """
    given = config.get(name, default)
    value = _number(given)
    if not (value >= least and value % 1 == 0):
        raise ValueError(f"`{name}` must be a whole number >= {least}, got {given!r}")
    return given if isinstance(given, int) else int(value)


def number(config: Mapping[str, Any], name: str, default: float) -> float:
    """A finite number.

    Raises:
        ValueError: if it is anything else.
    """
    value = _number(config.get(name, default))
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {config[name]!r}")
    return value


def _number(value: Any) -> float:
    """A number, NumPy's or written out too; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def flag(config: Mapping[str, Any], name: str) -> bool:
    """True or false, by default false.

    Raises:
        ValueError: if it is anything else.
    """
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be true or false, got {value!r}")
    return value


def started(domains: Mapping[str, Hyperparameter], config: Mapping[str, Any]) -> dict[str, Hyperparameter]:
    """Domains that begin where a config says: `initial_values` (name → value), and σ at `perturbation_scale` (1).

    Raises:
        ValueError: if `initial_values` names an unknown hyperparameter, or one of the two is not what it should be.
    """
    given, scale = config.get("initial_values"), number(config, "perturbation_scale", 1.0)
    initial = {} if given is None else given
    if not scale > 0:
        raise ValueError(f"`perturbation_scale > 0` must hold, got {scale}")
    if not isinstance(initial, Mapping):
        raise ValueError(f"`initial_values` must be a mapping of hyperparameters to values, got {initial!r}")
    for name in initial:
        if name not in domains:
            raise ValueError(
                f"`initial_values` must name hyperparameters of the task, got {name!r}; known are {', '.join(domains)}"
            )
    return {
        name: replace(domain, initial=initial.get(name, domain.initial), scale=scale)
        for name, domain in domains.items()
    }


class Watched(dict[str, Any]):
    """A config that notes which of its keys a task reads, in `read`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Value or default, noted."""
        self.read.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        # Whoever looks at all keys may read any of them; so may a copy.
        self.read.update(super().keys())
        return super().__iter__()
