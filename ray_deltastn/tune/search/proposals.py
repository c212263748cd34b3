"""Which point `SkOptSearch` suggests next: given points first, then a Latin hypercube, then those of the model."""

from collections.abc import Sequence

from ray_deltastn.tune.search.acquisition import ACQUISITIONS, ranked
from ray_deltastn.tune.search.axes import Code
from ray_deltastn.tune.search.design import SUGGESTION, Design, generator
from ray_deltastn.tune.search.model import Model, fit
from ray_deltastn.tune.search.space import Point, SearchSpace
from ray_deltastn.tune.search.state import Finished, Running


class Proposals:
    """A sequence of points; each depends on the seed, its number, and the trials that are known at that time.

    Args:
        seed: seed of the search.
        n_initial: known points before the model is used; None: twice the number of axes, at least 4 and at most 10.
        acq_func: one of `ACQUISITIONS`.
        lie: what is assumed of running trials, one of `LIES`.

    Attributes:
        suggested: number of suggestions so far.
        designed: number of rows of the design used so far.
        queue: points to suggest first; a code of None will be drawn.
    """

    def __init__(self, seed: int, n_initial: int | None, acq_func: str, lie: str) -> None:
        self.suggested = 0
        self.designed = 0
        self.queue: list[list[Code | None]] = []
        self._n_initial, self._acq_func, self._lie = n_initial, acq_func, lie
        self._design = Design(seed)

    @property
    def seed(self) -> int:
        """Seed of the search."""
        return self._design.seed

    def resume(self, counts: tuple[int, int, int], queue: list[list[Code | None]]) -> None:
        """Continue the sequence of another search.

        Args:
            counts: its seed, `suggested` and `designed`.
            queue: its `queue`.
        """
        seed, self.suggested, self.designed = counts
        self.queue, self._design = queue, Design(seed)

    def next(
        self, space: SearchSpace, finished: Sequence[Finished], running: Sequence[Running], maximise: bool
    ) -> Point:
        """Return the next point; one that is known already only if the space is finite and exhausted.

        Args:
            space: the search space.
            finished: trials that have ended, and points that were evaluated elsewhere.
            running: running trials.
            maximise: larger values are better.
        """
        rng = generator(self.seed, SUGGESTION, self.suggested)
        self.suggested += 1
        if self.queue:
            drawn = space.from_units(rng.uniform(size=len(space.axes)).tolist())
            return tuple(new if code is None else code for code, new in zip(self.queue.pop(0), drawn, strict=True))
        seen = {record.point for record in finished} | {trial.point for trial in running}
        model = self._model(space, finished, running, maximise)
        if model is None:
            point = self._design_point(space)
            found = None if point in seen else point
        else:
            name = ACQUISITIONS[rng.randint(3)] if self._acq_func == "gp_hedge" else self._acq_func
            points = ranked(space, model, name, rng)
            point = next(points)
            found = point if point not in seen else next((other for other in points if other not in seen), None)
        fresh = [] if found is not None else space.unseen(seen, rng)
        return found or (fresh[0] if fresh else point)

    def _initial_points(self, space: SearchSpace) -> int:
        return min(10, max(4, 2 * len(space.axes))) if self._n_initial is None else self._n_initial

    def _knows_enough(self, space: SearchSpace, finished: Sequence[Finished], running: Sequence[Running]) -> bool:
        wanted = self._initial_points(space)
        valued = sum(record.value is not None for record in finished)
        return len(finished) + len(running) >= wanted and valued >= min(2, wanted) and space.size > 1

    def _design_point(self, space: SearchSpace) -> Point:
        row = self._design.row(self.designed, self._initial_points(space), len(space.axes))
        self.designed += 1
        return space.from_units(row)

    def _model(
        self, space: SearchSpace, finished: Sequence[Finished], running: Sequence[Running], maximise: bool
    ) -> Model | None:
        """Return the model; None if too little is known for it, or it cannot be fitted."""
        if not self._knows_enough(space, finished, running):
            return None
        sign = -1.0 if maximise else 1.0
        losses = [None if record.value is None else sign * record.value for record in finished]
        return fit(space, [record.point for record in finished], losses, [trial.point for trial in running], self._lie)
