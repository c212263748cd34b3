"""Tables of the toy problems: regret, early excursions and time per cycle.

Each row of a record is one run: one method, one data set, one seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import MISSING, grid, significant
from benchmarks.common.pages import Table
from benchmarks.common.record import cases

RIDGE = ("toy/ridge.json", "toy/alternatives.json", "toy/ridge_other.json")
Runs = Sequence[Mapping[str, Any]]


def _by_method(records: Sequence[Mapping[str, Any]], cell: Callable[[Runs], str]) -> tuple[list[str], list[list[str]]]:
    """Methods, and one row per data set with one cell per method."""
    runs = [row for record in records for row in record["rows"]]
    methods = list(dict.fromkeys(row["method"] for row in runs))
    found = {case: mine for case, mine in cases(runs, ("data", "method"))}
    rows = []
    for data in dict.fromkeys(row["data"] for row in runs):
        cells = [cell(found[data, method]) if (data, method) in found else MISSING for method in methods]
        rows.append([data, *cells])
    return methods, rows


def percent(runs: Runs) -> str:
    """Median of the final regret over the seeds (largest in brackets), in percent."""
    regrets = [100 * row["regret_final"] for row in runs]
    return f"{significant(statistics.median(regrets))} ({significant(max(regrets))})"


def regrets(*records: Mapping[str, Any]) -> str:
    """Regret before the run, and after the run by method."""
    methods, rows = _by_method(records, percent)
    starts: dict[str, list[float]] = {}
    for row in (row for record in records for row in record["rows"]):
        if row["method"] == methods[0]:
            starts.setdefault(row["data"], []).append(100 * row["regret_initial"])
    lines = [[data, significant(statistics.median(starts[data])), *cells] for data, *cells in rows]
    return grid(["data", "at the start", *(f"`{method}`" for method in methods)], lines)


def early(*records: Mapping[str, Any]) -> str:
    """Largest excursion of λ in the first tenth of a run, over the seeds."""
    methods, rows = _by_method(records, lambda runs: f"{max(row['max_early_excursion'] for row in runs):.2f}")
    return grid(["data", *(f"`{method}`" for method in methods)], rows)


def cycle(*records: Mapping[str, Any]) -> str:
    """Milliseconds per cycle, eager and captured: mean over the seeds."""

    def cell(runs: Runs) -> str:
        return f"{statistics.fmean(1000 * row['seconds'] / row['cycles'] for row in runs):.1f}"

    runs = [row for record in records for row in record["rows"]]
    methods = list(dict.fromkeys(row["method"] for row in runs))
    lines = []
    for graph, what in (("off", "eager steps (`--graph off`)"), ("on", "captured steps (the default)")):
        mine = {m: [row for row in runs if row["method"] == m and row["graph"] == graph] for m in methods}
        lines.append([what, *(cell(mine[method]) if mine[method] else MISSING for method in methods)])
    return grid(["", *(f"`{method}`" for method in methods)], lines)


TABLES = {
    "toy-ridge": Table(regrets, RIDGE),
    "toy-ridge-plain": Table(regrets, ("toy/momentum0.json", "toy/momentum0_other.json")),
    "toy-early": Table(early, ("toy/ridge.json", "toy/ridge_other.json")),
    "toy-undivided": Table(regrets, ("toy/ridge_undivided.json",)),
    "toy-dropout": Table(regrets, ("toy/dropout.json",)),
    "toy-inverted-dropout": Table(regrets, ("toy/inverted_dropout.json",)),
    "toy-jacobian": Table(regrets, ("toy/jacobian.json",)),
    "toy-cycle": Table(cycle, ("toy/cycle_eager.json", "toy/cycle_captured.json")),
}
