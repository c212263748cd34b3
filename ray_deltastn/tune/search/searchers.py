"""The searchers by name, each with a seed, and the time they take in the driver."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform, Quantized, Uniform

from ray_deltastn.tune.nested import flat, nest
from ray_deltastn.tune.search.skopt_search import SkOptSearch
from ray_deltastn.tune.search.warm_start import WarmStart

#: Names that `make_searcher` knows: Gaussian process of scikit-optimize, random, grid, and two samplers of Optuna.
SEARCHERS = ("bo", "random", "grid", "optuna-tpe", "optuna-gp")
#: Calls of Tune into a searcher.
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
    """A searcher for `tune.run(search_alg=…)`, whose proposals repeat with its seed.

    Args:
        name: one of `SEARCHERS`; for `grid` see `grid_points`.
        space: config of a trial with Tune domains, nested mappings included.
        num_samples: trials planned.
        max_concurrent: trials at a time.
        seed: seed of the proposals. With several trials at a time, those of searchers that learn depend on the order in
            which trials end.
        warm_start: begin trials with what earlier ones have learned, see `WarmStart`.

    Returns:
        The searcher; its `seconds` are the driver's time spent in it so far.

    Raises:
        ValueError: if the name is unknown, or a domain is none that the searcher can cover.
        ImportError: if Optuna is not installed.
    """
    if warm_start:
        inner = make_searcher(name, space, num_samples=num_samples, max_concurrent=max_concurrent, seed=seed)
        return _timed(WarmStart)(inner)
    if name not in SEARCHERS:
        raise ValueError(f"`searcher` must be one of {', '.join(SEARCHERS)}, got {name!r}")
    if name == "random" or not flat(space, Domain):
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
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    initial = max(4, min(10, num_samples // 3))
    if name == "optuna-tpe":
        sampler: Any = optuna.samplers.TPESampler(seed=seed, n_startup_trials=initial)
    else:
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=initial)
    return _timed(OptunaSearch)(sampler=sampler)


def _timed(kind: type) -> type:
    """The same searcher with `seconds`, the time that Tune's calls into it have taken."""
    clock = [0.0]  # not in the searcher: some save all that they hold, and would bring it back on resume

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


def grid_points(space: Mapping[str, Any], num_samples: int, seed: int) -> list[dict[str, Any]]:
    """Points of the smallest regular grid over all domains that has `num_samples` of them, in random order.

    Every range has equally many values, in the middle of equal parts (of its logarithm, where it is searched so); a
    choice has all of its own. Of a grid with more points a random part is taken.

    Raises:
        ValueError: if a domain is neither a range nor a choice, or all together have fewer points.
    """
    domains: dict[str, Domain] = flat(space, Domain)
    most = math.prod(_points(name, domain) for name, domain in domains.items())
    if most < num_samples:
        raise ValueError(f"`num_samples` must be at most the {most:g} points of the grid, got {num_samples}")
    count = 1
    while True:
        columns = [_values(name, domain, count) for name, domain in domains.items()]
        total = math.prod(map(len, columns))
        if total >= num_samples:
            break
        count += 1
    chosen = _distinct(np.random.default_rng(seed), total, num_samples)
    points = []
    for index in chosen:
        values = {}
        for name, column in zip(domains, columns, strict=True):
            index, place = divmod(index, len(column))
            values[name] = column[place]
        points.append(nest(values))
    return points


def _distinct(generator: np.random.Generator, total: int, count: int) -> list[int]:
    """Distinct numbers below `total`, which may be far too many to list."""
    if total <= 10_000:
        return [int(i) for i in generator.permutation(total)[:count]]
    found: dict[int, None] = {}
    while len(found) < count:
        found[int(generator.random() * total)] = None
    return list(found)


def _points(name: str, domain: Domain) -> float:
    """How many values a domain has."""
    _values(name, domain, 1)  # refuses what is none
    if isinstance(domain, Categorical):
        return len(domain.categories)
    sampler = domain.get_sampler()
    if isinstance(sampler, Quantized):
        return int((domain.upper - domain.lower) / sampler.q + 1e-9) + 1
    return domain.upper - domain.lower if isinstance(domain, Integer) else math.inf


def _values(name: str, domain: Domain, count: int) -> list[Any]:
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if not isinstance(domain, Float | Integer):
        raise ValueError(f"a grid needs a range or a choice for '{name}', got {type(domain).__name__}")
    sampler = domain.get_sampler()
    step = None
    if isinstance(sampler, Quantized):
        step, sampler = sampler.q, sampler.sampler
    low, high = float(domain.lower), float(domain.upper)
    middles = [(i + 0.5) / count for i in range(count)]
    if isinstance(sampler, LogUniform):
        values = [math.exp(math.log(low) + share * (math.log(high) - math.log(low))) for share in middles]
    elif isinstance(sampler, Uniform):
        values = [low + share * (high - low) for share in middles]
    else:
        raise ValueError(f"a grid needs a bounded range for '{name}', got {type(sampler).__name__}")
    if step is not None:
        values = [min(max(round(value / step) * step, low), high) for value in values]
    return list(dict.fromkeys(math.floor(value) if isinstance(domain, Integer) else value for value in values))
