"""Population-based training (Jaderberg et al. 2017) in one process: the members are trained in turn."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping

from benchmarks.headroom.runs import Clock, Point, Runs, Training

#: Number of turns, the share of the members that is replaced in each, and how values change.
TURNS, REPLACED, FACTORS, REDRAWN = 10, 0.25, (0.8, 1.2), 0.25
#: Values are drawn again from the proposals of random search after those of its pool.
UNUSED = 16


def population(size: int) -> Callable[[Runs, float], Iterator[Point]]:
    """Population-based training (Jaderberg et al. 2017) with `size` members, which are trained in turn."""

    def trace(runs: Runs, plain: float) -> Iterator[Point]:
        config = {**runs.shared, "method": "fixed", "members": size}
        return runs.kept(f"pbt-{size}", config, lambda: members_of(runs, size))

    return trace


def members_of(runs: Runs, size: int) -> Iterator[Point]:
    """The reports of all members, turn after turn."""
    clock, chance = Clock(), random.Random(runs.seed)
    values = [runs.draw(i) for i in range(size)]
    members = [runs.training(clock, method="fixed", hyperparameters=v) for v in values]
    epochs = runs.problem.epochs
    for turn in range(1, TURNS + 1):
        scores = []
        for member in members:
            valid = math.inf
            while not member.done and member.tuner.epoch < epochs * turn // TURNS:
                point = member.step()
                valid = point.valid
                yield point
            scores.append(valid)
        if turn == TURNS:
            return
        order = sorted(range(size), key=scores.__getitem__)
        few = max(1, round(REPLACED * size))
        for bad in order[-few:]:
            good = chance.choice(order[:few])
            values[bad] = explored(runs, values[good], chance)
            members[bad] = copied(runs, members[good], values[bad], clock)


def explored(runs: Runs, values: Mapping[str, float], chance: random.Random) -> dict[str, float]:
    """Values times 0.8 or 1.2 within their ranges, or drawn again with a probability of ¼."""
    fresh = runs.draw(chance.randrange(UNUSED, 1000))
    found = {}
    for name, value in values.items():
        low, high = runs.space.hyperparameters[name].search_range(name)
        moved = min(max(value * chance.choice(FACTORS), low), high)
        moved = float(round(moved)) if runs.space.hyperparameters[name].integer else moved
        found[name] = fresh[name] if chance.random() < REDRAWN else moved
    return found


def copied(runs: Runs, source: Training, values: Mapping[str, float], clock: Clock) -> Training:
    """A run with other constants that continues from the state of another run."""
    made = runs.training(clock, method="fixed", hyperparameters=dict(values))
    with clock:
        made.tuner.load_state_dict(copy.deepcopy(source.tuner.state_dict()))
    return made
