"""Ray Tune integration: trials that tune their regularisation, and searchers for the other options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_deltastn.tune.readable import ReadableConfig
from ray_deltastn.tune.trainable import DeltaSTNTrainable
from ray_deltastn.tune.trial_config import TrialConfig

if TYPE_CHECKING:
    from ray_deltastn.tune.schedulers import make_scheduler
    from ray_deltastn.tune.search.skopt_search import SkOptSearch
    from ray_deltastn.tune.search.warm_start import WarmStart


if not TYPE_CHECKING:  # type checkers would accept every name

    def __getattr__(name: str) -> Any:
        # Only the driver needs scikit-optimize. Workers start faster without it.
        if name == "SkOptSearch":
            from ray_deltastn.tune.search.skopt_search import SkOptSearch

            return SkOptSearch
        if name == "WarmStart":
            from ray_deltastn.tune.search.warm_start import WarmStart

            return WarmStart
        if name == "make_scheduler":
            from ray_deltastn.tune.schedulers import make_scheduler

            return make_scheduler
        raise AttributeError(f"module 'ray_deltastn.tune' has no attribute {name!r}")


__all__ = ["DeltaSTNTrainable", "ReadableConfig", "SkOptSearch", "TrialConfig", "WarmStart", "make_scheduler"]
