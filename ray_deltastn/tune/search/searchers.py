"""The searchers by name, each with a seed, and a clock for the time that they take in the driver."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ray.tune.search import BasicVariantGenerator

from ray_deltastn.tune.search.domains import unresolved
from ray_deltastn.tune.search.grid import grid_points
from ray_deltastn.tune.search.skopt_search import SkOptSearch
from ray_deltastn.tune.search.warm_start import WarmStart

#: Names that `make_searcher` accepts: the Gaussian process of scikit-optimize (`bo`), random points, a grid, and two
#: samplers of Optuna.
SEARCHERS = ("bo", "random", "grid", "optuna-tpe", "optuna-gp")
#: Methods of a searcher that Tune calls, and whose time is counted.
_CALLS = ("suggest", "next_trial", "on_trial_result", "on_trial_complete")


def make_searcher(
    name: str,
    space: Mapping[str, Any],
    *,
    num_samples: int,
    max_concurrent: int,
    seed: int,
    warm_start: bool = False,
) -> Any:
    """Return a searcher for `tune.TuneConfig(search_alg=…)`; equal seeds give equal proposals.

    Args:
        name: one of `SEARCHERS`; for `grid` see `grid_points`.
        space: config of a trial with Tune domains, nested mappings included.
        num_samples: number of trials.
        max_concurrent: number of trials that run at the same time.
        seed: seed of the proposals. If several trials run at the same time, the proposals of a searcher that learns
            also depend on the order in which the trials end.
        warm_start: start each trial with what earlier trials have learned, see `WarmStart`.

    Returns:
        The searcher; its attribute `seconds` is the time that the driver has spent in it.

    Raises:
        ValueError: if the name is unknown, or the searcher does not support a domain.
        ImportError: if the searcher needs Optuna and it is not installed.
    """
    if warm_start:
        inner = make_searcher(name, space, num_samples=num_samples, max_concurrent=max_concurrent, seed=seed)
        return _timed(WarmStart)(inner)
    if name not in SEARCHERS:
        raise ValueError(f"`searcher` must be one of {', '.join(SEARCHERS)}, got {name!r}")
    if name == "random" or next(unresolved(space), None) is None:
        return _timed(BasicVariantGenerator)(random_state=seed, max_concurrent=max_concurrent)
    if name == "grid":
        points = grid_points(space, num_samples, seed)
        return _timed(BasicVariantGenerator)(
            points_to_evaluate=points, random_state=seed, max_concurrent=max_concurrent
        )
    if name == "bo":
        initial = max(4, min(10, num_samples // 3))
        return _timed(SkOptSearch)(n_initial_points=initial, random_state=seed)
    return _optuna(name, num_samples, seed)


def _optuna(name: str, num_samples: int, seed: int) -> Any:
    try:
        import optuna
    except ImportError:
        raise ImportError(f"`searcher: {name}` needs Optuna: pip install 'ray-deltastn[optuna]'") from None
    from ray_deltastn.tune.search.optuna_search import OptunaOnAxes  # it imports Optuna, which is optional

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    initial = max(4, min(10, num_samples // 3))
    if name == "optuna-tpe":
        sampler: Any = optuna.samplers.TPESampler(seed=seed, n_startup_trials=initial)
    else:
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=initial)
    return _timed(OptunaOnAxes)(sampler=sampler)


def _timed(kind: type) -> type:
    """Return a subclass of a searcher with `seconds`, the time that Tune's calls have taken."""
    clock = [0.0]  # not an attribute: some searchers save all their attributes, and would restore an old time

    def timing(name: str) -> Any:
        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return getattr(kind, name)(self, *arguments, **named)
            finally:
                clock[0] += time.perf_counter() - started

        return call

    calls = {name: timing(name) for name in _CALLS if hasattr(kind, name)}
    return type(f"Timed{kind.__name__}", (kind,), {"seconds": property(lambda self: clock[0]), **calls})
