"""Pictures of language models: validation scores, and schedules as in Figure 13."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.common.tables.language import NAMES
from benchmarks.language.problems import CONTENDERS, PROBLEMS, TUNED

Rows = Sequence[Mapping[str, Any]]
#: Largest score in a picture of scores, as a multiple of the median of the contenders' bests.
MOST_OF_BEST = 2.0


def label_of(row: Mapping[str, Any]) -> str:
    """The name that the tables have for a run's contender."""
    return NAMES[row["name"]].replace("`", "")


def draw_all(rows: Rows, folder: Path) -> None:
    """The pictures of each problem that has runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for problem in PROBLEMS:
        own = [row for row in rows if row["problem"] == problem]
        if own:
            curves(own, problem, folder / f"{problem}_valid.png")
        if any(row["name"] in TUNED for row in own):
            schedules(own, problem, folder / f"{problem}_schedules.png")


def curves(rows: Rows, problem: str, path: Path) -> None:
    """Validation scores against epochs: the runs of seed 0 but those of random search."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    found = [row for name in CONTENDERS for row in rows if row["name"] == name and row["seed"] == 0]
    bests = [row["valid"] for row in found if row["valid"] is not None]
    most = MOST_OF_BEST * median(bests) if bests else math.inf
    for row in found:
        inside = row["valid"] is not None and row["valid"] <= most
        name = label_of(row)
        label = name if inside else f"{name} (above the picture)"
        axes.plot(range(1, len(row["curve"]["valid"]) + 1), row["curve"]["valid"], label=label)
    if bests:  # epochs that are much worse would hide the differences
        axes.set_ylim(0.95 * min(bests), min(most, axes.get_ylim()[1]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation bits per character" if PROBLEMS[problem].bits else "validation perplexity")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def schedules(rows: Rows, problem: str, path: Path) -> None:
    """Schedules of the self-tuned runs of seed 0: one row of axes for each run, one column for each group."""
    found = [row for name in TUNED for row in rows if row["name"] == name and row["seed"] == 0]
    found = found or [row for row in rows if row["name"] in TUNED]
    groups = PROBLEMS[problem].picture
    figure = Figure(figsize=(4.2 * len(groups), 2.4 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), len(groups), squeeze=False, sharex=True, sharey="col")
    for line, row in zip(grid, found, strict=True):
        for axes, group in zip(line, groups, strict=True):
            for name in group:
                axes.plot(range(1, len(row["values"][name]) + 1), row["values"][name], label=name.replace("_", " "))
            axes.set_title(label_of(row), fontsize=9)
            if group[0].endswith("decay"):
                axes.set_yscale("log")
    for axes in grid[0]:
        axes.legend(frameon=False, fontsize=7)
    for axes in grid[-1]:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
    figure.savefig(path, dpi=110)
