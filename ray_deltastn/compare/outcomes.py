"""Outcomes of a comparison: one row per method and seed, and a summary with one row per method."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

#: Splits whose scores a report has, and their names in headings.
SPLITS = {"valid": "validation", "test": "test"}
#: Columns of the outcomes, costs and speeds of a method with one seed, and their headings.
OUTCOMES = {
    "best_valid_loss": "best validation loss",
    "final_valid_loss": "final validation loss",
    "test_loss": "test loss",
    "valid_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
}
COSTS = {"epochs": "epochs", "device_seconds": "device-seconds", "wall_seconds": "wall seconds"}
REACHED = {
    "valid_loss_at_random": "best validation loss within random's device-seconds",
    "epochs_to_random": "epochs to random's best",
    "seconds_to_random": "device-seconds to random's best",
}
#: Reference method, for the speeds in `REACHED` and for the differences.
REFERENCE = "random"


def own_metrics(columns: Iterable[str]) -> dict[str, str]:
    """The columns of the task's own metrics, such as `test_perplexity`, and their headings.

    Args:
        columns: columns of reports or of `outcomes`.
    """
    others = {*OUTCOMES, *REACHED, "valid_loss", "test_loss"}
    found = {}
    for column in columns:
        split, _, name = column.partition("_")
        if split in SPLITS and name and column not in others:
            found[column] = f"{SPLITS[split]} {name.replace('_', ' ')}"
    return found


def shown_metrics(columns: Iterable[str]) -> dict[str, str]:
    """One column for each of the task's own metrics, on the test data if there are any, and their names.

    Args:
        columns: columns of reports or of `outcomes`.
    """
    own = own_metrics(columns)
    names = dict.fromkeys(column.partition("_")[2] for column in own)
    return {f"test_{n}" if f"test_{n}" in own else f"valid_{n}": n.replace("_", " ") for n in names}


def headings(columns: Iterable[str]) -> dict[str, str]:
    """All columns of `outcomes` with a number for each method and seed, and their headings.

    Args:
        columns: columns of `outcomes`.
    """
    return {**OUTCOMES, **own_metrics(columns), **COSTS, **REACHED}


def finite(values: pd.Series[Any]) -> pd.Series[Any]:
    """Replace infinite values, which come from diverged trials, by NaN."""
    known: pd.Series[Any] = values.replace([math.inf, -math.inf], math.nan)
    return known


def spending(reports: pd.DataFrame) -> pd.DataFrame:
    """Reports of one method and seed in order of time, with the cost and the best loss of all trials so far.

    Added columns:

    - `spent_epochs`: training epochs of all trials so far;
    - `spent_seconds`: seconds inside all trials so far; a second on a fraction of a GPU counts as that fraction, and a
      second of a trial with several workers as often;
    - `best_so_far`: lowest validation loss so far.

    Args:
        reports: one row per report.
    """
    reports = reports.sort_values("timestamp", kind="stable")
    loss = finite(reports["valid_loss"])
    gpu = reports.get("config/resources/gpu", pd.Series(0.0, reports.index)).fillna(0.0)
    workers = reports.get("config/resources/workers", pd.Series(1.0, reports.index)).fillna(1.0)
    share = gpu.where((gpu > 0) & (gpu < 1), 1.0) * workers
    columns: pd.DataFrame = reports.assign(
        spent_epochs=np.arange(1, len(reports) + 1),
        spent_seconds=(reports["time_this_iter_s"] * share).cumsum(),
        best_so_far=loss.cummin().ffill(),
    )
    return columns


def best_trial(reports: pd.DataFrame) -> pd.DataFrame:
    """Reports of the trial with the lowest validation loss, in order of training."""
    best = reports.sort_values("valid_loss", kind="stable").iloc[0]
    its_own: pd.DataFrame = reports[reports["trial_id"] == best["trial_id"]].sort_values("training_iteration")
    return its_own


def outcomes(results: pd.DataFrame) -> pd.DataFrame:
    """Outcomes, with one row per method and seed.

    The best trial is the one with the lowest validation loss.

    - `best_valid_loss`, `test_loss`, `valid_accuracy`, `test_accuracy`, and the task's own metrics: from the report of
      the best trial that has the lowest validation loss;
    - `final_valid_loss`: from the last report of the best trial;
    - `epochs`, `device_seconds`, `wall_seconds`: cost of all trials together;
    - `epochs_to_random`, `seconds_to_random`: epochs and device-seconds until the method first reached the best loss
      of `random` with the same seed; NaN if it never did;
    - `valid_loss_at_random`: best loss after as many device-seconds as `random` spent with the same seed.

    Args:
        results: one row per report, see `gather`.
    """
    rows: list[dict[str, Any]] = []
    for (method, seed), reports in results.groupby(["method", "seed"], sort=False):
        spent, best = spending(reports), best_trial(reports)
        at = best.sort_values("valid_loss", kind="stable").iloc[0]
        row = {"method": method, "seed": seed, "trials": reports["trial_id"].nunique()}
        row |= {"best_valid_loss": at["valid_loss"], "final_valid_loss": best["valid_loss"].iloc[-1]}
        shown = ("test_loss", "valid_accuracy", "test_accuracy", *own_metrics(results.columns))
        row |= {name: at.get(name, math.nan) for name in shown}
        row |= {"epochs": len(spent), "device_seconds": spent["spent_seconds"].iloc[-1]}
        rows.append({**row, "wall_seconds": reports["wall_seconds"].iloc[0]})
    table: pd.DataFrame = pd.DataFrame(rows)
    for index, entry in table.iterrows():
        rival = table[(table["method"] == REFERENCE) & (table["seed"] == entry["seed"])]
        reached: dict[str, float] = dict.fromkeys(REACHED, math.nan)
        if len(rival):
            spent = spending(results[(results["method"] == entry["method"]) & (results["seed"] == entry["seed"])])
            there = spent[spent["best_so_far"] <= rival["best_valid_loss"].iloc[0]]
            if len(there):
                first = there.iloc[0]
                reached |= {"epochs_to_random": first["spent_epochs"], "seconds_to_random": first["spent_seconds"]}
            within = spent[spent["spent_seconds"] <= rival["device_seconds"].iloc[0]]
            if len(within):
                reached["valid_loss_at_random"] = within["best_so_far"].iloc[-1]
        table.loc[index, list(REACHED)] = list(reached.values())
    return table


def summary(per_seed: pd.DataFrame) -> pd.DataFrame:
    """Summary, with one row per method: mean and sample standard deviation (n − 1) of each column over seeds.

    The columns are `<outcome>_mean`, `<outcome>_std` and `<outcome>_n`. The last one counts the seeds with a finite
    value: a run that diverged from the start has no loss, and a method may never reach the best loss of `random`.

    Args:
        per_seed: one row per method and seed, see `outcomes`.
    """
    rows = []
    for method, found in per_seed.groupby("method", sort=False):
        row: dict[str, Any] = {"method": method, "seeds": len(found), "trials": found["trials"].mean()}
        for name in headings(per_seed.columns):
            values = finite(found[name]).dropna()
            row[f"{name}_mean"] = values.mean() if len(values) else math.nan
            row[f"{name}_std"] = values.std() if len(values) > 1 else math.nan
            row[f"{name}_n"] = len(values)
        rows.append(row)
    table: pd.DataFrame = pd.DataFrame(rows)
    return table
