"""Statistics of a record of searches, by function and budget."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import rankdata

from benchmarks.common.record import cases, rounded

Row = Mapping[str, Any]


def value(row: Row) -> float:
    """Best value of a search; infinity if no trial had one."""
    return math.inf if row["best"] is None else float(row["best"])


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the seeds, mean ranks and wins, by function, number of trials and searcher.

    `rank` is the mean over the seeds of the rank among the searchers. `wins` is the number of seeds, out of `pairs`, in
    which a search found a better value than random search; a tie counts as a half.
    """
    found = []
    for (function, budget), mine in cases(rows, ("function", "budget")):
        ranks, wins = _ranks(mine), _wins(mine, "random")
        for (searcher,), runs in cases(mine, ("searcher",)):
            best = statistics.median(value(run) for run in runs)
            won, pairs = wins.get(searcher, (None, 0))
            found.append(
                {
                    "function": function,
                    "budget": budget,
                    "searcher": searcher,
                    "n": len(runs),
                    "best": best,
                    "wins": won,
                    "pairs": pairs,
                    "rank": ranks[searcher],
                    "seconds": statistics.median(run["seconds"] for run in runs),
                }
            )
    return list(map(rounded, found))


def _ranks(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean rank of each searcher, over the seeds that all searchers have."""
    searchers = list(dict.fromkeys(row["searcher"] for row in rows))
    ranked = []
    for _, runs in cases(rows, ("seed",)):
        by = {run["searcher"]: value(run) for run in runs}
        if len(by) == len(searchers):
            ranked.append(rankdata([by[name] for name in searchers]))
    return {
        name: statistics.fmean(float(ranks[i]) for ranks in ranked) if ranked else math.nan
        for i, name in enumerate(searchers)
    }


def _wins(rows: Sequence[dict[str, Any]], rival: str) -> dict[str, tuple[float, int]]:
    """Number of seeds in which each searcher has a smaller best value than the rival, and the number of seeds."""
    theirs = {row["seed"]: value(row) for row in rows if row["searcher"] == rival}
    found: dict[str, tuple[float, int]] = {}
    for row in rows:
        if row["searcher"] != rival and row["seed"] in theirs:
            won = (value(row) < theirs[row["seed"]]) + (value(row) == theirs[row["seed"]]) / 2
            before = found.get(row["searcher"], (0.0, 0))
            found[row["searcher"]] = before[0] + won, before[1] + 1
    return found
