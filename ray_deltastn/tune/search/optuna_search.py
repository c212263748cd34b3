"""Tune's `OptunaSearch`, restricted to the values that Ray itself draws.

Tune's own translation differs: Optuna counts the steps of `qrandint(1, 10, 3)` from 1 and proposes 1, 4, 7 and 10, it
can propose the excluded upper bound of a range, and it ignores the steps of a logarithmic range.
"""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from ray_deltastn.tune.nested import flat, nest
from ray_deltastn.tune.search.axes import Axis, Multiples
from ray_deltastn.tune.search.domains import read_domain


class OptunaOnAxes(OptunaSearch):
    """`OptunaSearch` that proposes codes of quantised and whole-number domains, and turns them into values."""

    _axes: dict[str, Axis]

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take metric, mode and search space from Tune (called by Tune).

        Raises:
            ValueError: if a domain is not supported; the message names the key.
        """
        domains = flat(config, Domain)
        self._axes = {name: read_domain(name, domain) for name, domain in domains.items()}
        coded = {
            name: _codes(axis) if isinstance(axis, Multiples) else domains[name] for name, axis in self._axes.items()
        }
        return bool(super().set_search_properties(metric, mode, nest(coded), **spec))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the config of the next trial; None if there is none (called by Tune)."""
        config = super().suggest(trial_id)
        if config is None:
            return None
        for name, axis in self._axes.items():
            *path, last = name.split(".")
            inner = config
            for part in path:
                inner = inner[part]
            if isinstance(axis, Multiples):
                inner[last] = axis.value(inner[last])
            else:
                inner[last] = axis.nearest(inner[last])
        return config


def _codes(axis: Multiples) -> Domain:
    codes: Domain = (tune.lograndint if axis.log else tune.randint)(axis.first, axis.last + 1)
    return codes
