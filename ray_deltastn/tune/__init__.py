"""Ray Tune integration: trials that tune their regularisation, and searchers for the other options.

The names are imported when they are first used: reading a configuration does not need Ray, and workers start faster
without scikit-optimize.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_deltastn.tune.readable import ReadableConfig
    from ray_deltastn.tune.schedulers import make_scheduler
    from ray_deltastn.tune.search.skopt_search import SkOptSearch
    from ray_deltastn.tune.search.warm_start import WarmStart
    from ray_deltastn.tune.trainable import DeltaSTNTrainable
    from ray_deltastn.tune.trial_config import TrialConfig

#: Name → its module.
_HOMES = {
    "DeltaSTNTrainable": "trainable",
    "ReadableConfig": "readable",
    "SkOptSearch": "search.skopt_search",
    "TrialConfig": "trial_config",
    "WarmStart": "search.warm_start",
    "make_scheduler": "schedulers",
}


if not TYPE_CHECKING:  # type checkers would accept every name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = ["DeltaSTNTrainable", "ReadableConfig", "SkOptSearch", "TrialConfig", "WarmStart", "make_scheduler"]
