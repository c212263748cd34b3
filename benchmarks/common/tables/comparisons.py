"""Tables of comparisons: methods with the same budget of epochs, and hybrid search against random search."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import pandas as pd

from benchmarks.common.markdown import around, fixed, grid
from benchmarks.common.pages import Table
from benchmarks.common.record import cases, spread
from benchmarks.images_report import cell
from ray_deltastn.compare.outcomes import OUTCOMES
from ray_deltastn.compare.tables import cells

#: Name of each method on the pages.
NAMES = {
    "fixed": "`fixed`: initial values, one run",
    "grid": "`grid`",
    "random": "`random`",
    "bo": "`bo` (Gaussian process)",
    "asha": "`asha`",
    "pbt": "`pbt`",
    "stn": "`stn`, one run",
    "centered-stn": "`centered-stn`, one run",
    "delta-stn": "`delta-stn`, one run",
    "hybrid": "`hybrid`: Δ-STN inside, `bo` outside",
}
COLUMNS = {
    "best_valid_loss": "best validation loss",
    "test_loss": "test loss at the best epoch",
    "test_accuracy": "test accuracy at the best epoch",
    "valid_loss_at_random": "best validation loss within `random`'s device-seconds",
    "device_seconds": "device-seconds",
}
SEARCHES = {
    "hybrid": "hybrid: Δ-STN inside, Gaussian process outside",
    "random": "random, over regularisation and the outer options",
}


def methods(record: Mapping[str, Any]) -> str:
    """One row per method: mean ± standard deviation over the seeds."""
    header, rows = cells(pd.DataFrame(record["summary"]), COLUMNS)
    shown = header.index("trials")
    return grid(header[:shown], [[NAMES[row[0]], *row[1:shown]] for row in rows])


def differences(record: Mapping[str, Any]) -> str:
    """One row per pair of methods: difference ± half of its 95 % interval, and p after Holm's correction."""
    rows = []
    for (method, reference), found in cases(record["differences"], ("method", "reference")):
        row = [f"`{method}`", f"`{reference}`"]
        for one in found:
            same = one["verdict"] == "the same runs"
            row += ["the same runs" if same else around(one["mean"], one["half_width"], 4), fixed(one["p"], 2)]
        rows.append(row)
    outcomes = list(dict.fromkeys(one["outcome"] for one in record["differences"]))
    return grid(["method", "minus", *(h for o in outcomes for h in (OUTCOMES[o], "p"))], rows, left=2)


def on_the_way(*epochs: int) -> Any:
    """Table function: mean best validation loss after these numbers of epochs, summed over all trials."""

    def table(record: Mapping[str, Any]) -> str:
        rows = []
        for (method,), runs in cases(record["rows"], ("method",)):
            rows.append([NAMES[method], *(fixed(_reached(runs, number), 3) for number in epochs)])
        return grid(["best validation loss so far", *(f"after {number} epochs" for number in epochs)], rows)

    return table


def _reached(runs: list[dict[str, Any]], epochs: int) -> float | None:
    """Mean over the seeds of the best loss at the last point up to an epoch; None if a curve has no such point."""
    found = []
    for curve in (run["curve"] for run in runs):
        best = [v for e, v in zip(curve["epochs"], curve["best_valid_loss"], strict=True) if e <= epochs]
        found += best[-1:]
    return statistics.fmean(found) if len(found) == len(runs) else None


def searches(record: Mapping[str, Any]) -> str:
    """Hybrid and random search: mean ± standard deviation over the seeds."""
    columns = ("best_valid_loss", "test_loss", "test_accuracy")
    rows = []
    for (search,), runs in cases(record["rows"], ("search",)):
        spreads = [cell(spread([run[column] for run in runs]), 4) for column in columns]
        diverged = ", ".join(f"{run['diverged_trials']}" for run in runs)
        rows.append([SEARCHES[search], *spreads, diverged, ", ".join(f"{run['epochs']}" for run in runs)])
    heads = [COLUMNS[column] for column in columns]
    return grid(["search", *heads, "diverged trials, by seed", "epochs run, by seed"], rows)


def searches_apart(record: Mapping[str, Any]) -> str:
    """Hybrid search minus random search, for each seed."""
    losses = {"best_valid_loss": "best validation loss", "test_loss": "test loss at the best epoch"}
    found = {(run["search"], run["seed"]): run for run in record["rows"]}
    seeds = sorted({seed for _, seed in found})
    rows = [
        [f"{seed}", *(around(found["hybrid", seed][o] - found["random", seed][o], None, 4) for o in losses)]
        for seed in seeds
    ]
    return grid(["seed", *losses.values()], rows)


_DIGITS, _FASHION, _HYBRID = (
    "compare/digits/record.json",
    "compare/fashion_10k/record.json",
    "digits_hybrid/record.json",
)
TABLES = {
    "compare-digits": Table(methods, (_DIGITS,)),
    "compare-digits-differences": Table(differences, (_DIGITS,)),
    "compare-digits-way": Table(on_the_way(60, 117, 180, 360), (_DIGITS,)),
    "compare-fashion": Table(methods, (_FASHION,)),
    "compare-fashion-differences": Table(differences, (_FASHION,)),
    "compare-fashion-way": Table(on_the_way(12, 24, 36, 48), (_FASHION,)),
    "hybrid-digits": Table(searches, (_HYBRID,)),
    "hybrid-digits-differences": Table(searches_apart, (_HYBRID,)),
}
