"""Tables of a comparison as text and as files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ray_deltastn.compare.differences import Difference, differences
from ray_deltastn.compare.outcomes import OUTCOMES, headings, outcomes, shown_metrics, summary

#: Columns of the first table of a comparison, its last one, and those of the second table in a terminal.
FIRST = {
    "best_valid_loss": "valid loss",
    "test_loss": "test loss",
    "test_accuracy": "accuracy",
}
FIRST_COST = {"device_seconds": "seconds"}
SECOND = {
    "epochs": "epochs",
    "wall_seconds": "wall s",
    "epochs_to_random": "epochs to random's",
}

#: Methods whose gain is told, the most important first, and what each is compared with.
GAINERS = ("hybrid", "delta-stn", "centered-stn", "stn")
RIVALS = {"fixed": "no tuning", "random": "random search"}


def first_columns(per_seed: pd.DataFrame) -> dict[str, str]:
    """The columns of the first table of a comparison, with the task's own metrics.

    Args:
        per_seed: one row per method and seed, see `outcomes`.
    """
    return {**FIRST, **shown_metrics(per_seed.columns), **FIRST_COST}


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


def cells(
    table: pd.DataFrame, names: Mapping[str, str] | None = None, counts: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the summary as text; columns without any value are left out.

    Args:
        table: the summary, see `summary`.
        names: columns to show and their headings; by default all.
        counts: whether to show the numbers of trials and seeds.
    """
    if names is None:
        names = headings(column.removesuffix("_mean") for column in table.columns if column.endswith("_mean"))
    shown = [name for name in names if table[f"{name}_mean"].notna().any()]
    rows = [
        [
            str(row["method"]),
            *(mean_and_deviation(row, n) for n in shown),
            *([f"{row['trials']:.3g}", f"{row['seeds']}"] if counts else []),
        ]
        for _, row in table.iterrows()
    ]
    return ["method", *(names[name] for name in shown), *(["trials", "seeds"] if counts else [])], rows


def seed_cells(per_seed: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the outcomes of every seed as text; columns without any value are left out."""
    names = headings(per_seed.columns)
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
    texts = {(d.method, d.outcome): d.figures if alone else f"{d.figures}, {d.verdict}" for d in found}
    header = [f"minus {found[0].reference}", *(OUTCOMES[name] for name in names)]
    return header, [[method, *(texts.get((method, name), "–") for name in names)] for method in methods]


def shortfalls(per_seed: pd.DataFrame, budgets: Mapping[str, int], seeds: int) -> list[str]:
    """A line of text for every method and seed that did not spend its budget.

    Args:
        per_seed: one row per method and seed, see `outcomes`.
        budgets: epochs of each requested method, with one seed.
        seeds: number of requested seeds.
    """
    spent = per_seed.set_index(["method", "seed"])["epochs"]
    lines = []
    for method, budget in budgets.items():
        for seed in range(seeds):
            epochs = spent.get((method, seed), 0)
            if epochs < budget:
                why = "trials diverged or failed" if epochs else "no finished experiment"
                lines.append(f"{method}, seed {seed}: {epochs} of {budget} epochs ({why})")
    return lines


def gain(per_seed: pd.DataFrame) -> str:
    """One sentence: what tuning by gradient has gained against no tuning and against random search.

    Args:
        per_seed: one row per method and seed, see `outcomes`.

    Returns:
        The sentence, about the first of `GAINERS` with results; empty if there is none, or nothing to compare it with.
    """
    means = per_seed.groupby("method")[["best_valid_loss", "test_loss", "device_seconds"]].mean()
    name = next((name for name in GAINERS if name in means.index), None)
    rivals = {rival: text for rival, text in RIVALS.items() if rival in means.index}
    if name is None or not rivals:
        return ""
    ours = means.loc[name]
    told = [_against(ours, means.loc[rival], text) for rival, text in rivals.items()]
    return (
        f"The validation loss of {name} is {number(ours['best_valid_loss'], 'loss')} after "
        f"{number(ours['device_seconds'], 'seconds')} device-seconds, {', and '.join(told)}."
    )


def _against(ours: pd.Series[Any], theirs: pd.Series[Any], name: str) -> str:
    loss, seconds = theirs["best_valid_loss"], theirs["device_seconds"]
    change = ours["best_valid_loss"] / loss - 1
    where = "below" if change < 0 else "above"
    return f"{abs(change):.0%} {where} {name} ({number(loss, 'loss')} after {number(seconds, 'seconds')})"


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
