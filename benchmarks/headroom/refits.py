"""The plain network trained again on training and validation data with what a run or a search has found.

| name              | trains with                                                             |
|-------------------|-------------------------------------------------------------------------|
| `refit-schedule`  | the schedule of the self-tuned run `delta-stn`                          |
| `refit-final`     | its last values (`use="final"` of `rd.refit`)                           |
| `refit-random`    | the constants of random search's best run, up to the epoch of its best  |
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch

import ray_deltastn as rd
from benchmarks.headroom.contenders import POOL, drawn
from benchmarks.headroom.runs import Clock, Point, Runs

#: Name of a refit → the contender whose network it replaces.
REFITS = {"refit-schedule": "delta-stn", "refit-final": "delta-stn", "refit-random": "random"}


def refitted(runs: Runs, name: str) -> tuple[float, float]:
    """Test loss before and after: of the network with the best validation loss, and of the network trained again.

    Args:
        runs: the runs of a task and seed; those that the refit needs are made if they are missing.
        name: one of `REFITS`.
    """
    if name == "refit-random":
        found = [(_best(drawn(runs, number)), number) for number in range(POOL)]
        (best, epoch), number = min(found, key=lambda one: one[0][0].valid)
        given: Any = runs.draw(number)
        options: dict[str, Any] = {"epochs": epoch}
    else:
        points = list(runs.follow("delta-stn", method="delta-stn"))
        best, _ = _best(iter(points))
        given = pd.DataFrame([point.values for point in points])
        options = {"use": "final" if name == "refit-final" else "schedule"}
    assert best.test is not None

    def train() -> Iterator[Point]:
        clock = Clock()
        torch.manual_seed(runs.seed)
        task = runs.problem.task(runs.splits)
        with clock:
            weights = rd.refit(task, given, **{**runs.shared, **options}, seed=runs.seed, device="cpu", graph="on")
        model = runs.problem.model()
        model.load_state_dict(weights)
        model.eval()
        x, y = runs.splits[2]
        with torch.no_grad():
            test = float(runs.problem.loss(model(x), y))
        yield Point(clock.seconds, test, test)

    kept = {**runs.shared, **options, "values": given.to_dict("list") if isinstance(given, pd.DataFrame) else given}
    (after,) = runs.kept(name, kept, train)
    assert after.test is not None
    return best.test, after.test


def _best(run: Iterator[Point]) -> tuple[Point, int]:
    """The report with the best validation loss, and its epoch."""
    epoch, best = min(enumerate(run, start=1), key=lambda one: one[1].valid)
    return best, epoch
