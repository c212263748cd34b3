"""The repeats of Tune's `Repeater`: trials with the same config, except for their number in `__trial_index__`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.search.repeater import TRIAL_INDEX

from ray_deltastn.training import random_state
from ray_deltastn.training.settings import Settings


def with_own_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's config with the seed of its repeat, a function of `seed` and `__trial_index__`.

    Repeat 0 keeps the seed, so it is the trial that runs without a `Repeater`.

    Args:
        config: config of a trial; without `__trial_index__` it is returned as it is.

    Raises:
        ValueError: if `__trial_index__` is not a whole number >= 0, or the seed is refused by `Settings`.
    """
    found = dict(config)
    if TRIAL_INDEX not in found:
        return found
    index = found[TRIAL_INDEX]
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise ValueError(f"`{TRIAL_INDEX}` must be a whole number >= 0, got {index!r}")
    if index > 0:
        given = {"seed": found["seed"]} if "seed" in found else {}
        found["seed"] = random_state.seed_of(Settings(**given).seed, index) % 2**32
    return found
