"""A grid over all searched keys, as points for Tune's own generator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ray_deltastn.tune.search.axes import Axis, Choice, Code
from ray_deltastn.tune.search.space import SearchSpace


def grid_points(space: Mapping[str, Any], num_samples: int, seed: int) -> list[dict[str, Any]]:
    """Return the points of the smallest regular grid that has at least `num_samples` of them, in random order.

    All numeric domains have equally many values, in the middle of equal parts of the range (of its logarithm, if the
    domain is logarithmic). A choice has all of its categories. If the grid has more points than `num_samples`, a random
    part of them is taken.

    Args:
        space: config of a trial with Tune domains.
        num_samples: number of points.
        seed: seed of the order and of the random part.

    Raises:
        ValueError: if there is no domain, a domain is not supported, or the grid has fewer points than `num_samples`.
    """
    searched = SearchSpace(dict(space))
    if searched.size < num_samples:
        raise ValueError(f"`num_samples` must be at most the {searched.size:g} points of the grid, got {num_samples}")
    count = 1
    while True:
        columns = [_codes(axis, count) for axis in searched.axes]
        total = math.prod(map(len, columns))
        if total >= num_samples:
            break
        count += 1
    points = []
    for index in _distinct(np.random.default_rng(seed), total, num_samples):
        codes = []
        for column in columns:
            index, place = divmod(index, len(column))
            codes.append(column[place])
        points.append(searched.decode(tuple(codes)))
    return points


def _codes(axis: Axis, count: int) -> list[Code]:
    """Return the codes in the middle of `count` equal parts of an axis, each once; all codes of a choice."""
    if isinstance(axis, Choice):
        return list(range(axis.size))
    return list(dict.fromkeys(axis.from_unit((i + 0.5) / count) for i in range(count)))


def _distinct(generator: np.random.Generator, total: int, count: int) -> list[int]:
    """Return distinct random numbers below `total`; a large `total` is not enumerated."""
    if total <= 10_000:
        return [int(i) for i in generator.permutation(total)[:count]]
    found: dict[int, None] = {}
    while len(found) < count:
        found[int(generator.random() * total)] = None
    return list(found)
