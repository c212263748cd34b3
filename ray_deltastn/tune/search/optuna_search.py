"""Tune's `OptunaSearch`, restricted to the values that Ray itself draws.

Tune's own translation differs: Optuna counts the steps of `qrandint(1, 10, 3)` from 1 and proposes 1, 4, 7 and 10, it
can propose the excluded upper bound of a range, and it ignores the steps of a logarithmic range.
"""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from ray_deltastn.tune.search.axes import Axis, Multiples
from ray_deltastn.tune.search.domains import Path, read_domain, unresolved


class OptunaOnAxes(OptunaSearch):
    """`OptunaSearch` that proposes codes of quantised and whole-number domains, and turns them into values."""

    _axes: dict[Path, Axis]

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take metric, mode and search space from Tune (called by Tune).

        Raises:
            ValueError: if a domain is not supported or is inside a list; the message names the key.
        """
        self._axes = {}
        coded = config
        for path, domain in unresolved(config):
            name = ".".join(map(str, path))
            if not all(isinstance(part, str) for part in path):
                raise ValueError(f"domains must be in nested mappings for Optuna, got one in a list for '{name}'")
            axis = self._axes[path] = read_domain(name, domain)
            if isinstance(axis, Multiples):
                coded = _replaced(coded, path, _codes(axis))
        return bool(super().set_search_properties(metric, mode, coded, **spec))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the config of the next trial; None if there is none (called by Tune)."""
        config = super().suggest(trial_id)
        if config is None:
            return None
        for path, axis in self._axes.items():
            inner = config
            for part in path[:-1]:
                inner = inner[part]
            drawn = inner[path[-1]]
            inner[path[-1]] = axis.value(drawn) if isinstance(axis, Multiples) else axis.nearest(drawn)
        return config


def _replaced(config: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Return a config with another value at a path; the given one stays as it is."""
    first, *rest = path
    return {**config, first: _replaced(config[first], tuple(rest), value) if rest else value}


def _codes(axis: Multiples) -> Domain:
    codes: Domain = (tune.lograndint if axis.log else tune.randint)(axis.first, axis.last + 1)
    return codes
