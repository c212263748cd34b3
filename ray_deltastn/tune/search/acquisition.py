"""Where `SkOptSearch` looks next: acquisition functions, and the points that maximise them.

| symbol | name in code | meaning                                                             |
|--------|--------------|---------------------------------------------------------------------|
| μ, σ   | mean, std    | mean and standard deviation of the loss at a point                  |
| z      | z            | `(best - μ) / σ`                                                    |
| u      | units        | a point in the unit cube                                            |
| w      |              | prior of an axis: `max(4 u (1 - u), FLOOR)`, largest in the middle  |

A value is `log a(μ, σ) + CAUTION log p(success) + (BELIEF / n) Σ log w(u)` with n finished trials. Without the prior
(Hvarfner et al. 2022) a search with few trials spends many of them on borders and corners, where the model knows least.
The weight of the prior falls as trials end, so an optimum at a border is still found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy.special import erfcx, log_ndtr
from scipy.stats import qmc

from ray_deltastn.tune.search.axes import Choice
from ray_deltastn.tune.search.model import Floats, Model
from ray_deltastn.tune.search.space import Point, SearchSpace

#: Acquisition functions: expected improvement, lower confidence bound, probability of improvement, and one of these
#: at random.
ACQUISITIONS = ("EI", "LCB", "PI", "gp_hedge")
#: Weight of the probability of success: with 1 instead of 2, searches end no better, and more of their trials fail.
CAUTION = 2.0
#: Weight of the prior against borders, and its smallest value on an axis.
BELIEF, FLOOR = 4.0, 0.15
#: Points of a Sobol sequence, and points around each of the best trials, from which the search for a maximum begins.
SPREAD, BEST, NEAR = 1024, 4, 16
#: The search continues from this many points, with this many moves of each for each size of a move.
CENTRES, MOVES = 8, 32
SIZES = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
#: Least probability that a move changes an axis, and the probability that it changes a choice.
CHANGED, SWITCHED = 0.4, 0.1


def log_ei(z: Floats) -> Floats:
    """Return `log(φ(z) + z Φ(z))`, the logarithm of the expected improvement for σ = 1, for any z."""
    log_density = -(z**2) / 2 - math.log(2 * math.pi) / 2
    high = np.maximum(z, -1.0)
    plain = np.log(np.exp(-(high**2) / 2) / math.sqrt(2 * math.pi) + high * np.exp(log_ndtr(high)))
    middle = np.clip(z, -1e3, -1.0)  # below, 1 + z Φ(z) / φ(z) is lost in rounding; it tends to 1 / z²
    ratio = np.log1p(middle * math.sqrt(math.pi / 2) * erfcx(-middle / math.sqrt(2)))
    tail = np.where(z < -1e3, -2 * np.log(np.maximum(-z, 1.0)), ratio)
    found: Floats = np.where(z > -1.0, plain, log_density + tail)
    return found


def acquisition(name: str, mean: Floats, std: Floats, best: float) -> Floats:
    """Return the acquisition of points, larger is better, as a logarithm (LCB: as it is).

    Args:
        name: "EI", "LCB" or "PI".
        mean: mean of the loss at each point.
        std: its standard deviation.
        best: the smallest mean of a known point.
    """
    z = (best - mean) / std
    if name == "EI":
        return log_ei(z) + np.log(std)
    found: Floats = log_ndtr(z) if name == "PI" else 1.96 * std - mean
    return found


def value(space: SearchSpace, model: Model, name: str, units: Floats) -> Floats:
    """Return the acquisition of points in the unit cube, with the probability of success and the prior."""
    x = space.columns(units)
    numeric = [index for index, axis in enumerate(space.axes) if axis.size > 1 and not isinstance(axis, Choice)]
    inner = np.maximum(4 * units[:, numeric] * (1 - units[:, numeric]), FLOOR)
    prior = np.log(inner).sum(1) * BELIEF / model.trials
    found: Floats = acquisition(name, *model.loss.predict(x), model.best) + CAUTION * model.log_success(x) + prior
    return found


def ranked(space: SearchSpace, model: Model, name: str, rng: np.random.RandomState) -> Iterator[Point]:
    """Yield points, those with the largest acquisition first.

    Args:
        space: the search space.
        model: what is known.
        name: "EI", "LCB" or "PI".
        rng: source of randomness.
    """
    axes = len(space.axes)
    spread = qmc.Sobol(axes, seed=int(rng.randint(2**31 - 1))).random(SPREAD)
    best = np.repeat(model.valued[np.argsort(model.y, kind="stable")[:BEST]], NEAR, axis=0)
    near = np.clip(best + SIZES[1] * rng.normal(size=best.shape), 0.0, 1.0)
    units = space.snapped(np.concatenate([spread, near]))
    values = value(space, model, name, units)
    order = np.argsort(-values, kind="stable")
    centres, tops = _climbed(space, model, name, units[order[:CENTRES]], values[order[:CENTRES]], rng)
    for row in np.argsort(-tops, kind="stable"):
        yield space.from_units(centres[row].tolist())
    for row in order:
        yield space.from_units(units[row].tolist())


def _climbed(
    space: SearchSpace, model: Model, name: str, centres: Floats, tops: Floats, rng: np.random.RandomState
) -> tuple[Floats, Floats]:
    """Move each point to better points by random moves that become smaller; return the points and their values."""
    count, axes = centres.shape
    choices = [index for index, axis in enumerate(space.axes) if isinstance(axis, Choice)]
    for size in SIZES:
        shape = (count, MOVES, axes)
        changed = rng.uniform(size=shape) < max(CHANGED, 1 / axes)
        moved = centres[:, None] + changed * size * rng.normal(size=shape)
        drawn = rng.uniform(size=shape)[..., choices]
        switched = rng.uniform(size=shape)[..., choices] < SWITCHED
        moved[..., choices] = np.where(switched, drawn, centres[:, None, choices])
        moved = space.snapped(np.clip(moved, 0.0, 1.0).reshape(-1, axes))
        found = value(space, model, name, moved).reshape(count, MOVES)
        rows, best = np.arange(count), found.argmax(1)
        better = found[rows, best] > tops
        centres = np.where(better[:, None], moved.reshape(shape)[rows, best], centres)
        tops = np.where(better, found[rows, best], tops)
    return centres, tops
