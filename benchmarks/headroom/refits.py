"""The plain network trained again on training and validation data with what a run or a search has found.

| name              | trains with                                                             |
|-------------------|-------------------------------------------------------------------------|
| `refit-best`      | the schedule of the self-tuned run `delta-stn`, up to its best epoch    |
| `refit-schedule`  | the whole schedule                                                      |
| `refit-final`     | its last values (`use="final"` of `rd.refit`)                           |
| `refit-random`    | the constants of random search's best run, up to the epoch of its best  |
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchmarks.headroom.contenders import POOL, best_of, drawn
from benchmarks.headroom.runs import Runs

#: Name of a refit → the contender whose network it replaces.
REFITS = {
    "refit-best": "delta-stn",
    "refit-schedule": "delta-stn",
    "refit-final": "delta-stn",
    "refit-random": "random",
}


def refitted(runs: Runs, name: str) -> tuple[float, float]:
    """Test loss before and after: of the network with the best validation loss, and of the network trained again.

    Args:
        runs: the runs of a task and seed; those that the refit needs are made if they are missing.
        name: one of `REFITS`.
    """
    if name == "refit-random":
        found = [(best_of(drawn(runs, number)), number) for number in range(POOL)]
        (best, epoch), number = min(found, key=lambda one: one[0][0].valid)
        given: Any = runs.draw(number)
        options: dict[str, Any] = {"epochs": epoch}
    else:
        points = list(runs.follow("delta-stn", method="delta-stn"))
        best, epoch = best_of(iter(points))
        schedule = pd.DataFrame([point.values for point in points])
        given = schedule.head(epoch) if name == "refit-best" else schedule
        options = {"use": "final" if name == "refit-final" else "schedule"}
    after = runs.refit(name, given, **options)
    assert best.test is not None
    assert after.test is not None
    return best.test, after.test
