"""Tables of the study of λ's step: each variant against its reference, paired by task and seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.common.markdown import MISSING, grid
from benchmarks.common.pages import Table
from benchmarks.headroom.study import GROUPS, REFERENCE, ROTATING, TASKS, Variant
from ray_deltastn.compare.differences import holm

Record = Mapping[str, Any]
#: Columns of the tables: number of a row → its heading.
SHOWN = {"best": "best validation loss", "test": "test loss there", "final": "final validation loss"}


def changes(rows: Sequence[Mapping[str, Any]], name: str, what: str, task: str | None = None) -> list[float]:
    """log(variant / reference) for each task and seed that has both."""
    reference = next((group[name].reference for group in GROUPS.values() if name in group), REFERENCE)
    found = {(r["task"], r["seed"], r["variant"]): r[what] for r in rows if what in r}
    pairs = [
        (value, found[of, seed, reference])
        for (of, seed, variant), value in found.items()
        if variant == name and (of, seed, reference) in found and task in (None, of)
    ]
    return [math.log(one / other) if math.isfinite(one) else math.inf for one, other in pairs]


def _text(values: Sequence[float]) -> str:
    """Mean change with its standard error, in percent."""
    if not values:
        return MISSING
    if not all(map(math.isfinite, values)):
        return "diverged"
    mean = 100 * float(np.mean(values))
    error = f" ± {100 * np.std(values, ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{mean:+.1f}{error} %".replace("-", "−")


def _variants(record: Record, group: str) -> dict[str, Variant]:
    present = {row["variant"] for row in record["rows"]}
    return {name: variant for name, variant in GROUPS[group].items() if name in present}


def table(record: Record, group: str) -> str:
    """Mean relative change of each loss against the reference, over all tasks and seeds, and by task for the best."""
    rows, variants = record["rows"], _variants(record, group)
    adjusted = holm([_p(changes(rows, name, "best")) for name in variants])
    lines = []
    for (name, variant), p in zip(variants.items(), adjusted, strict=True):
        best = changes(rows, name, "best")
        by_task = [_text(changes(rows, name, "best", task)) for task in TASKS]
        wins = sum(value < 0 for value in best)
        cells = [_text(changes(rows, name, what)) for what in SHOWN]
        lines.append([variant.label, f"{wins} of {len(best)}", *cells, *by_task, f"{p:.2g}"])
    heads = [
        "changed",
        "lower best loss in",
        *SHOWN.values(),
        *(f"best, `{task}`" for task in TASKS),
        "p (Wilcoxon, Holm)",
    ]
    return grid(heads, lines)


def _p(values: Sequence[float]) -> float:
    if len(values) < 2 or all(value == 0 for value in values):
        return 1.0
    return float(stats.wilcoxon(np.nan_to_num(values, posinf=10.0)).pvalue)


def rotating(record: Record) -> str:
    """Test loss of the refit with the schedule of a run with rotating splits, against that of the reference."""
    lines = []
    for task in TASKS:
        found = {
            name: {
                r["seed"]: r["refit"]
                for r in record["rows"]
                if r["task"] == task and r["variant"] == name and "refit" in r
            }
            for name in (REFERENCE, ROTATING)
        }
        seeds = sorted(found[REFERENCE].keys() & found[ROTATING].keys())
        if seeds:
            means = [f"{np.mean([found[name][seed] for seed in seeds]):.3f}" for name in (REFERENCE, ROTATING)]
            wins = sum(found[ROTATING][seed] < found[REFERENCE][seed] for seed in seeds)
            lines.append([f"`{task}`", f"{len(seeds)}", *means, f"{wins}"])
    return grid(["task", "seeds", "one split", "rotating splits", "lower in"], lines)


def _of(group: str) -> Table:
    return Table(lambda record: table(record, group), ("headroom/study.json",))


TABLES = {
    "study-rate": _of("rate"),
    "study-tricks": _of("tricks"),
    "study-cost": _of("cost"),
    "study-response": _of("response"),
    "study-share": _of("share"),
    "study-rotating": Table(rotating, ("headroom/study.json",)),
}
