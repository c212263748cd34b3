"""Tables of a comparison: outcomes per seed, a summary per method as in the paper's Table 1, and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ray_deltastn.compare.plan import CONTENDERS

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
#: Columns shown in a terminal, with short headings.
SHORT = {
    "best_valid_loss": "best valid loss",
    "test_loss": "test loss",
    "device_seconds": "device-s",
    "wall_seconds": "wall s",
    "epochs_to_random": "epochs to random's",
}
#: Reference method of all differences, and a second reference for self-tuned single runs.
REFERENCE, CONTROL = "random", "fixed"


def finite(values: pd.Series[Any]) -> pd.Series[Any]:
    """Replace infinite values, which come from diverged trials, by NaN."""
    known: pd.Series[Any] = values.replace([math.inf, -math.inf], math.nan)
    return known


def spending(reports: pd.DataFrame) -> pd.DataFrame:
    """Reports of one method and seed in order of time, with the cost and the best loss of all trials so far.

    Added columns:

    - `spent_epochs`: training epochs of all trials so far;
    - `spent_seconds`: seconds inside all trials so far; a second on a fraction of a GPU counts as that fraction;
    - `best_so_far`: lowest validation loss so far.

    Args:
        reports: one row per report.
    """
    reports = reports.sort_values("timestamp", kind="stable")
    loss = finite(reports["valid_loss"])
    gpu = reports.get("config/resources/gpu", pd.Series(0.0, reports.index)).fillna(0.0)
    share = gpu.where((gpu > 0) & (gpu < 1), 1.0)
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

    - `best_valid_loss`, `test_loss`, `valid_accuracy`, `test_accuracy`: from the report of the best trial that has the
      lowest validation loss;
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
        row |= {name: at.get(name, math.nan) for name in ("test_loss", "valid_accuracy", "test_accuracy")}
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
        for name in (*OUTCOMES, *COSTS, *REACHED):
            values = finite(found[name]).dropna()
            row[f"{name}_mean"] = values.mean() if len(values) else math.nan
            row[f"{name}_std"] = values.std() if len(values) > 1 else math.nan
            row[f"{name}_n"] = len(values)
        rows.append(row)
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


@dataclass(frozen=True)
class Difference:
    """Mean difference of an outcome between two methods, paired by seed, with its 95 % interval by Student's t.

    Attributes:
        method: the method.
        reference: the method whose outcome is subtracted.
        outcome: column of `outcomes`.
        seeds: number of requested seeds.
        n: number of seeds for which both outcomes are finite.
        mean: mean difference, method minus reference.
        half_width: half the width of the interval, not adjusted for the number of differences.
        p: p-value of a t-test of zero mean, adjusted for all differences of the comparison (Holm 1979).
    """

    method: str
    reference: str
    outcome: str
    seeds: int
    n: int
    mean: float
    half_width: float
    p: float = math.nan

    @property
    def verdict(self) -> str:
        """`lower` or `higher` if the adjusted p is below 0.05 and every seed has finite losses."""
        if self.n < self.seeds:
            return f"no conclusion: {self.seeds - self.n} of {self.seeds} seeds have no pair of finite losses"
        if self.n < 2:
            return "no conclusion: only one seed"
        if self.mean == self.half_width == 0:
            return "the same runs"
        # If all differences are equal up to rounding, p is 0 although nothing differs.
        if not self.p < 0.05 or abs(self.mean) <= 1e-9:
            return "within the noise"
        return "lower" if self.mean < 0 else "higher"

    @property
    def figures(self) -> str:
        """The mean and half the width of its interval, as text."""
        if self.n == 0:
            return "–"
        return f"{self.mean:+.4f}".replace("-", "−") + (f" ± {self.half_width:.4f}" if self.n > 1 else "")

    def __str__(self) -> str:
        return f"{self.method} − {self.reference}, {OUTCOMES[self.outcome]}: {self.figures}, {self.verdict}"


def differences(
    per_seed: pd.DataFrame, names: Sequence[str] = ("best_valid_loss", "test_loss"), seeds: int | None = None
) -> list[Difference]:
    """Differences of every method to `random`, and of self-tuned single runs also to `fixed`.

    If `random` is not part of the comparison, the first method is the reference. The p-values are adjusted for the
    number of differences (Holm).

    Args:
        per_seed: one row per method and seed, see `outcomes`.
        names: columns of `per_seed` to compare.
        seeds: number of requested seeds; by default the number of seeds in `per_seed`.
    """
    seeds = per_seed["seed"].nunique() if seeds is None else seeds
    methods = list(dict.fromkeys(per_seed["method"]))
    reference = REFERENCE if REFERENCE in methods else methods[0]
    pairs = [(method, reference) for method in methods if method != reference]
    if CONTROL in methods and reference != CONTROL:
        pairs += [
            (method, CONTROL) for method in methods if CONTENDERS[method].tuned and not CONTENDERS[method].searcher
        ]
    indexed = per_seed.set_index(["method", "seed"])
    found: list[Difference] = []
    for outcome in names:
        if indexed[outcome].isna().all():
            continue  # the task has no test data
        for method, rival in pairs:
            apart = indexed.loc[method][outcome] - indexed.loc[rival][outcome]
            known = finite(apart).dropna()
            mean = float(known.mean()) if len(known) else math.nan
            wide, p = half_width(known), p_value(known)
            found.append(Difference(method, rival, outcome, seeds, len(known), mean, wide, p))
    adjusted = holm([one.p for one in found])
    return [replace(one, p=p) for one, p in zip(found, adjusted, strict=True)]


def p_value(values: Sequence[float] | pd.Series) -> float:
    """Two-sided p-value of zero mean, by t = mean / (s / √n) with n − 1 degrees of freedom; NaN for n < 2."""
    if len(values) < 2:
        return math.nan
    mean, width = abs(float(np.mean(values))), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(2 * stats.t.sf(mean / width, len(values) - 1)) if width > 0 else float(mean == 0)


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number m, which controls the family-wise error rate; NaN values stay NaN.

    The i-th smallest value becomes the maximum over j ≤ i of min(1, (m − j + 1) p_j) (Holm 1979).
    """
    order = sorted((p, place) for place, p in enumerate(values) if not math.isnan(p))
    adjusted, most = [math.nan] * len(values), 0.0
    for rank, (p, place) in enumerate(order):
        most = max(most, min(1.0, (len(order) - rank) * p))
        adjusted[place] = most
    return adjusted


def half_width(values: Sequence[float] | pd.Series) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t; NaN for n < 2."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan


def number(value: float, name: str, like: float | None = None) -> str:
    """Format a value of a column; `–` if it is not finite.

    Args:
        value: the value.
        name: name of the column; it decides the number of decimals.
        like: for seconds, the value whose size decides the number of decimals; by default `value`.
    """
    if not math.isfinite(value):
        return "–"
    if "seconds" in name:
        size = abs(value if like is None else like)
        return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"
    return f"{value:.{0 if 'epochs' in name else 4 if 'loss' in name else 3}f}"


def mean_and_deviation(row: Any, name: str) -> str:
    """Format a column of the summary as `mean ± std`, without `± std` for one seed.

    If some seeds have no value, the text also says how many seeds have one.
    """
    deviation, n = row[f"{name}_std"], row[f"{name}_n"]
    spread = "" if math.isnan(deviation) else f" ± {number(deviation, name, row[f'{name}_mean'])}"
    return number(row[f"{name}_mean"], name) + spread + (f" ({n} of {row['seeds']})" if 0 < n < row["seeds"] else "")


def markdown(table: pd.DataFrame) -> str:
    """The summary as a Markdown table, like the paper's Table 1, with the costs."""
    header, rows = cells(table)
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cells(table: pd.DataFrame, names: Mapping[str, str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the summary as text; columns without any value are left out.

    Args:
        table: the summary, see `summary`.
        names: columns to show and their headings; by default all.
    """
    names = {**OUTCOMES, **COSTS, **REACHED} if names is None else names
    shown = [name for name in names if table[f"{name}_mean"].notna().any()]
    rows = [
        [str(row["method"]), *(mean_and_deviation(row, n) for n in shown), f"{row['trials']:.3g}", f"{row['seeds']}"]
        for _, row in table.iterrows()
    ]
    return ["method", *(names[name] for name in shown), "trials", "seeds"], rows


def seed_cells(per_seed: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the outcomes of every seed as text; columns without any value are left out."""
    names = {**OUTCOMES, **COSTS, **REACHED}
    shown = [name for name in names if per_seed[name].notna().any()]
    rows = [
        [str(row["method"]), f"{row['seed']}", *(number(row[name], name) for name in shown), f"{row['trials']}"]
        for _, row in per_seed.iterrows()
    ]
    return ["method", "seed", *(names[name] for name in shown), "trials"], rows


def difference_cells(found: Sequence[Difference]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the differences to one reference as text: one row per method, one column per outcome."""
    methods = list(dict.fromkeys(d.method for d in found))
    names = list(dict.fromkeys(d.outcome for d in found))
    alone = all(d.seeds == 1 for d in found)  # then the page says once that there is no conclusion
    said = {(d.method, d.outcome): d.figures if alone else f"{d.figures}, {d.verdict}" for d in found}
    header = [f"minus {found[0].reference}", *(OUTCOMES[name] for name in names)]
    return header, [[method, *(said.get((method, name), "–") for name in names)] for method in methods]


def shortfalls(per_seed: pd.DataFrame, methods: Sequence[str], seeds: int, budget: int) -> list[str]:
    """A line of text for every method and seed that did not spend its budget.

    Args:
        per_seed: one row per method and seed, see `outcomes`.
        methods: requested methods.
        seeds: number of requested seeds.
        budget: epochs of each method and seed.
    """
    spent = per_seed.set_index(["method", "seed"])["epochs"]
    lines = []
    for method in methods:
        for seed in range(seeds):
            epochs = spent.get((method, seed), 0)
            if epochs < budget:
                why = "trials diverged or failed" if epochs else "no finished experiment"
                lines.append(f"{method}, seed {seed}: {epochs} of {budget} epochs ({why})")
    return lines


def write_tables(
    results: pd.DataFrame, out: Path, seeds: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, list[Difference]]:
    """Write `per_seed.csv`, `summary.csv`, `differences.csv` and `table.md`.

    Args:
        results: one row per report, see `gather`.
        out: folder to write to.
        seeds: number of requested seeds; by default the number of seeds in `results`.

    Returns:
        The content of the first three files: see `outcomes`, `summary` and `differences`.
    """
    per_seed = outcomes(results)
    table, apart = summary(per_seed), differences(per_seed, seeds=seeds)
    per_seed.to_csv(out / "per_seed.csv", index=False)
    table.to_csv(out / "summary.csv", index=False)
    pd.DataFrame([{**asdict(d), "verdict": d.verdict} for d in apart]).to_csv(out / "differences.csv", index=False)
    lines = "".join(f"- {difference}\n" for difference in apart)
    (out / "table.md").write_text(markdown(table) + ("\n" + lines if lines else ""), encoding="utf-8")
    return per_seed, table, apart
