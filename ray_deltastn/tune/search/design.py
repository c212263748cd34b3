"""Where the search's random numbers come from, and its first points: Latin hypercubes, one after another."""

from __future__ import annotations

import numpy as np
from skopt.sampler import Lhs

#: Streams of random numbers of one seed.
SUGGESTION, DESIGN = 0, 1


def generator(seed: int, stream: int, index: int) -> np.random.RandomState:
    """A generator of its own for each number in a stream."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed, spawn_key=(stream, index))))


class Design:
    """Latin hypercubes in the unit cube; a point depends on the seed and its number alone.

    Args:
        seed: of the search.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._block = -1
        self._rows: list[list[float]] = []

    def row(self, number: int, rows: int, axes: int) -> list[float]:
        """Point of this number, counted from 0, of hypercubes with so many rows and axes each."""
        block, index = divmod(number, rows)
        if self._block != block:
            lhs = Lhs(criterion="maximin", iterations=100)
            self._rows = lhs.generate([(0.0, 1.0)] * axes, rows, random_state=generator(self.seed, DESIGN, block))
            self._block = block
        return self._rows[index]
