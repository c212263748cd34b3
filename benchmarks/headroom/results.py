"""What the traces of the contenders say: losses at a budget, ranks, tests, and the time to random search's best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.headroom.runs import Point
from ray_deltastn.compare.differences import holm

#: Budgets of the tables, in plain runs.
BUDGETS = (1.0, 2.0, 4.0, 8.0, 16.0)
#: Budgets of the curves, in plain runs: three for each doubling.
MARKS = tuple(round(2 ** (k / 3), 4) for k in range(-12, 13))
#: A budget may be exceeded by this share: the seconds of equal runs differ.
TOLERANCE = 0.02


def scored(points: Iterable[Point], plain: float) -> dict[str, Any]:
    """What a record keeps of a trace.

    Args:
        points: the trace.
        plain: seconds of the plain run of the same task and seed.

    Returns:
        `valid` and `test`: for each of `MARKS` the best validation loss so far, and the test loss there. `bests`: pairs
        of a budget and the best validation loss from it on. `final`: validation and test loss at the end. `seconds`: of
        the whole trace. `cost`: the same in plain runs, so that rows of several machines can be compared.
    """
    bests: list[tuple[float, float, float]] = []
    last = None
    for last in points:
        if last.test is not None and (last.last or not bests or last.valid < bests[-1][1]):
            bests.append((last.seconds / plain, last.valid, last.test))
    found: dict[str, Any] = {"valid": [], "test": []}
    for mark in MARKS:
        before = [best for best in bests if best[0] <= mark * (1 + TOLERANCE)]
        found["valid"].append(before[-1][1] if before else None)
        found["test"].append(before[-1][2] if before else None)
    found["bests"] = [best[:2] for best in bests]
    found["final"] = None if last is None else (last.valid, last.test)
    found["seconds"] = 0.0 if last is None else last.seconds
    found["cost"] = found["seconds"] / plain
    return found


def limited(points: Iterator[Point], seconds: float) -> Iterator[Point]:
    """The points of a trace within a number of seconds."""
    for point in points:
        if point.seconds > seconds:
            return
        yield point


def at(entry: Mapping[str, Any], budget: float, which: str) -> float:
    """Validation or test loss of an entry at a budget; infinite if there is none."""
    value = entry[which][MARKS.index(budget)]
    return math.inf if value is None else float(value)


def time_to(entry: Mapping[str, Any], target: float) -> float:
    """Budget at which the validation loss is first at most `target`; infinite if never."""
    return next((float(budget) for budget, valid in entry["bests"] if valid <= target), math.inf)


# --- blocks: one task and seed, in which all contenders are compared -------------------------------------------------

#: (task, seed) → contender → entry.
Blocks = Mapping[tuple[str, int], Mapping[str, Mapping[str, Any]]]


def complete(blocks: Blocks, contenders: Sequence[str]) -> dict[tuple[str, int], Mapping[str, Mapping[str, Any]]]:
    """The blocks that have all contenders."""
    return {key: block for key, block in blocks.items() if all(name in block for name in contenders)}


def losses(blocks: Blocks, contenders: Sequence[str], budget: float, which: str = "test") -> np.ndarray:
    """Losses at a budget, (blocks, contenders)."""
    return np.array([[at(block[name], budget, which) for name in contenders] for block in blocks.values()])


def mean_ranks(table: np.ndarray) -> np.ndarray:
    """Mean rank of each column; the smallest loss of a row has rank 1, and equal losses share their ranks."""
    ranks: np.ndarray = stats.rankdata(table, axis=1).mean(axis=0)
    return ranks


@dataclass(frozen=True)
class Comparison:
    """Two contenders over all blocks.

    Attributes:
        first: one contender.
        second: the other one.
        wins: share of the blocks in which the first has the lower loss.
        change: median of log(loss of the first / loss of the second).
        p: of the two-sided Wilcoxon signed-rank test, after Holm's correction.
        p_of_tasks: the same with one mean for each task, without a correction: the seeds of a task have one network and
            similar data, so they are not independent.
    """

    first: str
    second: str
    wins: float
    change: float
    p: float
    p_of_tasks: float


def comparisons(
    table: np.ndarray, names: Sequence[str], tasks: Sequence[str], of: str | None = None
) -> list[Comparison]:
    """Wilcoxon's signed-rank test on the log ratios of the losses, for all pairs or for those with one contender.

    Args:
        table: losses (blocks, contenders).
        names: the contenders.
        tasks: the task of each block.
        of: compare this contender with all others; None compares all pairs.
    """
    pairs = [
        pair for pair in combinations(range(len(names)), 2) if of is None or of in (names[pair[0]], names[pair[1]])
    ]
    pairs = [(b, a) if of == names[b] else (a, b) for a, b in pairs]
    found, raw = [], []
    for a, b in pairs:
        ratio = np.log(np.minimum(table[:, a], 1e9)) - np.log(np.minimum(table[:, b], 1e9))
        raw.append(_wilcoxon(ratio))
        by_task = np.array([ratio[[of == task for of in tasks]].mean() for task in dict.fromkeys(tasks)])
        found.append((float((ratio < 0).mean()), float(np.median(ratio)), _wilcoxon(by_task)))
    adjusted = holm(raw)
    return [
        Comparison(names[a], names[b], wins, change, p, p_of_tasks)
        for (a, b), (wins, change, p_of_tasks), p in zip(pairs, found, adjusted, strict=True)
    ]


def _wilcoxon(ratios: np.ndarray) -> float:
    return float(stats.wilcoxon(ratios).pvalue) if ratios.any() else 1.0


def groups(
    ranks: np.ndarray, names: Sequence[str], pairs: Sequence[Comparison], level: float = 0.05
) -> list[list[str]]:
    """Longest runs of contenders, in the order of their ranks, without a significant difference among them."""
    order = [names[i] for i in np.argsort(ranks)]
    differ = {frozenset((pair.first, pair.second)) for pair in pairs if pair.p < level}
    found: list[list[str]] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and all(frozenset((order[end], other)) not in differ for other in order[start:end]):
            end += 1
        if end - start > 1 and not any(set(order[start:end]) <= set(group) for group in found):
            found.append(order[start:end])
    return found


def shares(blocks: Blocks, name: str, of_all: bool = True) -> dict[str, list[float]]:
    """The time to random search's best of all runs, as a share of random search's time.

    Args:
        blocks: the blocks; those without the contender or random search are left out.
        name: the contender.
        of_all: whether that is the time of all its runs, or until the report that turns out to be its best. Nobody
            knows before the last run which is the best of all.

    Returns:
        Task → one share for each seed, infinite if the contender never gets there.
    """
    found: dict[str, list[float]] = {}
    for (task, _), block in blocks.items():
        if name in block and "random" in block:
            until, target = block["random"]["bests"][-1]
            whole = block["random"]["cost"] if of_all else until
            found.setdefault(task, []).append(time_to(block[name], target) / whole)
    return found


def median(values: Sequence[float]) -> float:
    """Median, which may be infinite."""
    return statistics.median(values) if values else math.nan


def interval(values: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """The 5 % and 95 % points of the median over samples of the values with replacement."""
    sample = np.random.default_rng(0).choice(np.array(values), (draws, len(values)))
    low, high = np.quantile(np.median(sample, axis=1), (0.05, 0.95), method="inverted_cdf")
    return float(low), float(high)
