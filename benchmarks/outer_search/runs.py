"""One search of one function: what Tune's driver asks a searcher, without trials and without a cluster."""

from __future__ import annotations

import math
import random
import time
import warnings
from collections import deque
from typing import Any

import numpy as np
import torch
from ray.tune.search.variant_generator import generate_variants

from benchmarks.outer_search.functions import FUNCTIONS, CrashError
from ray_deltastn.tune.search.axes import Interval
from ray_deltastn.tune.search.domains import read_domain
from ray_deltastn.tune.search.searchers import make_searcher


def quiet() -> None:
    """Use one thread, and hide the warnings of the searchers; each process of the benchmark begins with it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


#: Trials that run at the same time.
IN_FLIGHT = 2


def run(name: str, searcher: str, seed: int, budget: int) -> dict[str, Any]:
    """Search a function with `budget` trials, two at a time; they end in the order in which they began.

    Args:
        name: a key of `FUNCTIONS`.
        searcher: a name that `make_searcher` accepts.
        seed: seed of the searcher and of the noise.
        budget: number of trials.

    Returns:
        The row of a record: `best` is the smallest true value of a trial, `chosen` the true value of the trial with
        the smallest reported value, `failed` the number of trials without a value, `corners` the share of the searched
        numbers that are within 1 % of an end of their range, and `seconds` the driver's time in the searcher.
    """
    function, noise = FUNCTIONS[name], np.random.RandomState(seed)
    ask, tell, seconds = _contender(name, searcher, seed, budget)
    live: deque[tuple[str, dict[str, Any]]] = deque()
    values: list[tuple[float, float]] = []  # reported and true, of trials with a value
    asked = []

    def end() -> None:
        trial_id, config = live.popleft()
        error = noise.normal() * function.noise
        try:
            true = function.true(config)
        except CrashError:
            tell(trial_id, None, True)
            return
        if math.isfinite(true):
            values.append((true + error, true))
        tell(trial_id, {"loss": true + error, "training_iteration": 1}, False)

    for index in range(budget):
        if len(live) == IN_FLIGHT:
            end()
        live.append((str(index), ask(str(index))))
        asked.append(live[-1][1])
    while live:
        end()
    return {
        "function": name,
        "searcher": searcher,
        "budget": budget,
        "seed": seed,
        "best": min((true for _, true in values), default=None),
        "chosen": min(values)[1] if values else None,
        "failed": budget - len(values),
        "corners": _corners(name, asked),
        "seconds": seconds(),
    }


def _contender(name: str, searcher: str, seed: int, budget: int) -> tuple[Any, Any, Any]:
    """Functions that ask a searcher for a config, tell it a result, and return the time it has taken."""
    space = dict(FUNCTIONS[name].space)
    if searcher == "random":  # Tune's own random search needs a registered trainable; this is how it draws
        draws = random.Random(seed)
        state = np.random.RandomState(draws.randrange(2**32))
        return lambda _: next(iter(generate_variants(space, random_state=state)))[1], lambda *_: None, lambda: 0.0
    found = make_searcher(searcher, space, num_samples=budget, max_concurrent=IN_FLIGHT, seed=seed)
    found.set_search_properties("loss", "min", space)
    return (
        found.suggest,
        lambda trial_id, result, error: found.on_trial_complete(trial_id, result=result, error=error),
        lambda: found.seconds,
    )


def _corners(name: str, configs: list[dict[str, Any]]) -> float:
    """Share of the numbers on continuous axes that are within 1 % of an end of their axis."""
    axes = [
        axis for axis in (read_domain(*item) for item in FUNCTIONS[name].space.items()) if isinstance(axis, Interval)
    ]
    units = [axis.to_unit(config[axis.name]) for config in configs for axis in axes]
    return sum(min(unit, 1 - unit) < 0.01 for unit in units) / len(units)


def suggestion(searcher: str, points: int) -> dict[str, Any]:
    """Seconds of the first and of the second suggestion after `points` finished trials of Hartmann's function."""
    function, draws = FUNCTIONS["hartmann-6"], np.random.RandomState(0)
    space = dict(function.space)
    found = make_searcher(searcher, space, num_samples=points, max_concurrent=IN_FLIGHT, seed=0)
    found.set_search_properties("loss", "min", space)
    for _ in range(points):
        config = next(iter(generate_variants(space, random_state=draws)))[1]
        found.add_evaluated_point(config, function.true(config))
    seconds = []
    for index in range(IN_FLIGHT):
        started = time.perf_counter()
        found.suggest(str(index))
        seconds.append(time.perf_counter() - started)
    return {"searcher": searcher, "points": points, "seconds": seconds}
