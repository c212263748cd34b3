"""The random generators of a search, and its first points: a sequence of Latin hypercubes."""

from __future__ import annotations

import numpy as np
from skopt.sampler import Lhs

#: The two independent streams of random numbers of one seed.
SUGGESTION, DESIGN = 0, 1


def generator(seed: int, stream: int, index: int) -> np.random.RandomState:
    """Return the random generator of one index in a stream; different indices give independent generators."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed, spawn_key=(stream, index))))


class Design:
    """A sequence of Latin hypercubes in the unit cube; a point depends only on the seed and on its number.

    Args:
        seed: seed of the search.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._block = -1
        self._rows: list[list[float]] = []

    def row(self, number: int, rows: int, axes: int) -> list[float]:
        """Return one point of the sequence, one number in [0, 1] per axis.

        Args:
            number: number of the point, from 0.
            rows: points in each hypercube.
            axes: axes of the cube.
        """
        block, index = divmod(number, rows)
        if self._block != block:
            lhs = Lhs(criterion="maximin", iterations=100)
            self._rows = lhs.generate([(0.0, 1.0)] * axes, rows, random_state=generator(self.seed, DESIGN, block))
            self._block = block
        return self._rows[index]
