"""What a comparison says in numbers: a summary, the paper's Table 1, and differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

#: Columns of a method's outcome with one seed, and their headings.
OUTCOMES = {
    "best_valid_loss": "best validation loss",
    "final_valid_loss": "final validation loss",
    "test_loss": "test loss",
    "valid_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
}
COSTS = {"epochs": "epochs", "device_seconds": "device-seconds", "wall_seconds": "wall seconds"}
REACHED = {"epochs_to_random": "epochs to random's best", "seconds_to_random": "device-seconds to random's best"}
#: With whom differences are taken, where it takes part.
REFERENCE = "random"


def spending(reports: pd.DataFrame) -> pd.DataFrame:
    """Reports of one method and seed as they came, with what all trials together had spent and reached by then.

    Columns added: `spent_epochs`; `spent_seconds`, in trials, all of them together; `best_so_far`, the lowest
    validation loss.
    """
    reports = reports.sort_values("arrived", kind="stable")
    loss = reports["valid_loss"].replace([math.inf, -math.inf], math.nan)
    return reports.assign(
        spent_epochs=np.arange(1, len(reports) + 1),
        spent_seconds=reports["time_this_iter_s"].cumsum(),
        best_so_far=loss.cummin().ffill(),
    )


def best_trial(reports: pd.DataFrame) -> pd.DataFrame:
    """Reports of the trial with the lowest validation loss."""
    best = reports.sort_values("valid_loss", kind="stable").iloc[0]
    return reports[reports["trial_id"] == best["trial_id"]].sort_values("training_iteration")


def outcomes(results: pd.DataFrame) -> pd.DataFrame:
    """One row per method and seed.

    The best trial is the one with the lowest validation loss; accuracies and the test loss are those of its report with
    that loss, `final_valid_loss` is that of its last one. `epochs_to_random` and `seconds_to_random` are what the
    method had spent when it first came to the best loss of `random` with the same seed; NaN where it never did.
    """
    rows: list[dict[str, Any]] = []
    for (method, seed), reports in results.groupby(["method", "seed"], sort=False):
        spent, best = spending(reports), best_trial(reports)
        at = best.sort_values("valid_loss", kind="stable").iloc[0]
        row = {"method": method, "seed": seed, "trials": reports["trial_id"].nunique()}
        row |= {"best_valid_loss": at["valid_loss"], "final_valid_loss": best["valid_loss"].iloc[-1]}
        row |= {name: at.get(name, math.nan) for name in ("test_loss", "valid_accuracy", "test_accuracy")}
        row |= {"epochs": len(spent), "device_seconds": spent["spent_seconds"].iloc[-1]}
        rows.append({**row, "wall_seconds": reports["wall_seconds"].iloc[0]})
    table = pd.DataFrame(rows)
    for index, row in table.iterrows():
        rival = table[(table["method"] == REFERENCE) & (table["seed"] == row["seed"])]
        epochs = seconds = math.nan
        if len(rival):
            spent = spending(results[(results["method"] == row["method"]) & (results["seed"] == row["seed"])])
            reached = spent[spent["best_so_far"] <= rival["best_valid_loss"].iloc[0]]
            if len(reached):
                epochs, seconds = reached[["spent_epochs", "spent_seconds"]].iloc[0]
        table.loc[index, list(REACHED)] = [epochs, seconds]
    return table


def summary(per_seed: pd.DataFrame) -> pd.DataFrame:
    """One row per method, with `<outcome>_mean` and `<outcome>_std` over seeds (n − 1), and what it has cost.

    `reached_random` counts the seeds with which the method came to the best loss of `random`.
    """
    rows = []
    for method, found in per_seed.groupby("method", sort=False):
        row: dict[str, Any] = {"method": method, "seeds": len(found), "trials": found["trials"].mean()}
        for name in (*OUTCOMES, *COSTS, *REACHED):
            values = found[name].replace([math.inf, -math.inf], math.nan).dropna()
            row[f"{name}_mean"] = values.mean() if len(values) else math.nan
            row[f"{name}_std"] = values.std() if len(values) > 1 else math.nan
        rows.append({**row, "reached_random": int(found["epochs_to_random"].notna().sum())})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Difference:
    """A method's outcome minus another's, paired by seed, with its 95 % interval by Student's t."""

    method: str
    reference: str
    outcome: str
    n: int
    mean: float
    half_width: float

    def __str__(self) -> str:
        what = f"{self.method} − {self.reference}, {OUTCOMES[self.outcome]}: {self.mean:+.4f}"
        if self.n < 2:
            return f"{what} (one seed: no statement)"
        interval = f"{what} ± {self.half_width:.4f} (95 %, {self.n} seeds)"
        if abs(self.mean) <= self.half_width:
            return f"{interval}: within the noise"
        return f"{interval}: {'lower' if self.mean < 0 else 'higher'}"


def differences(per_seed: pd.DataFrame, names: Sequence[str] = ("best_valid_loss", "test_loss")) -> list[Difference]:
    """Every method against `random`, or the first one where it takes no part."""
    methods = list(dict.fromkeys(per_seed["method"]))
    reference = REFERENCE if REFERENCE in methods else methods[0]
    indexed = per_seed.set_index(["method", "seed"])
    found = []
    for outcome in names:
        rival = indexed.loc[reference][outcome]
        for method in methods:
            apart = (indexed.loc[method][outcome] - rival).replace([math.inf, -math.inf], math.nan).dropna()
            if method == reference or apart.empty:
                continue
            n = len(apart)
            half = float(stats.t.ppf(0.975, n - 1) * apart.std() / math.sqrt(n)) if n > 1 else math.nan
            found.append(Difference(method, reference, outcome, n, float(apart.mean()), half))
    return found


def mean_and_deviation(row: Any, name: str) -> str:
    """`mean ± std` of a column of the summary; the mean alone with one seed; a dash without any."""
    mean, deviation = row[f"{name}_mean"], row[f"{name}_std"]
    if math.isnan(mean):
        return "–"
    digits = 0 if name in COSTS or name in REACHED else 4 if name.endswith("loss") else 3
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")


def markdown(table: pd.DataFrame) -> str:
    """The summary as a Markdown table, in the manner of the paper's Table 1, with what it has cost."""
    header, rows = cells(table)
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the summary as text; no column that holds nothing."""
    names = {**OUTCOMES, **COSTS, **REACHED}
    shown = [name for name in names if table[f"{name}_mean"].notna().any()]
    rows = [
        [
            str(row["method"]),
            f"{row['seeds']:.0f}",
            f"{row['trials']:.0f}",
            *(mean_and_deviation(row, n) for n in shown),
        ]
        for _, row in table.iterrows()
    ]
    return ["method", "seeds", "trials", *(names[name] for name in shown)], rows


def write_tables(results: pd.DataFrame, out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `per_seed.csv`, `summary.csv` and `table.md`; return the first two."""
    per_seed = outcomes(results)
    table = summary(per_seed)
    per_seed.to_csv(out / "per_seed.csv", index=False)
    table.to_csv(out / "summary.csv", index=False)
    (out / "table.md").write_text(markdown(table))
    return per_seed, table
