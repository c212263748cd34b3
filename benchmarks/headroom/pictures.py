"""Pictures of the suite: losses over seconds, and mean ranks with their critical differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.headroom.contenders import CONTENDERS
from benchmarks.headroom.problems import SUITE
from benchmarks.headroom.results import BUDGETS, MARKS, Blocks, comparisons, complete, groups, losses, mean_ranks

#: Contenders of the curves, each with its colour.
COLOURS = {
    "plain": "#9a9a9a",
    "random": "#4c72b0",
    "gp": "#8d6748",
    "asha": "#6a994e",
    "pbt-4": "#7b5ea7",
    "stn": "#d1495b",
    "delta-stn-paper": "#edae49",
    "delta-stn": "#00798c",
    "delta-stn-refit": "#005f73",
    "random-refit": "#24407a",
}
#: Budget of the ranks and tests, in plain runs.
BUDGET = 4.0
#: A contender with runs that fit this budget. PBT with eight members needs eight.
RANKED = (
    "plain",
    "random",
    "tpe",
    "gp",
    "asha",
    "pbt-4",
    "schedule",
    "stn",
    "centered-stn",
    "delta-stn-paper",
    "delta-stn",
    "hybrid",
    "delta-stn-refit",
    "random-refit",
)
#: Contenders with a band over the seeds; more bands would hide each other.
BANDS = ("delta-stn", "delta-stn-refit", "random")
Rows = Sequence[Mapping[str, Any]]


def label(name: str) -> str:
    """Name of a contender in pictures and tables."""
    return CONTENDERS[name].label if name in CONTENDERS else name


def _plain(name: str) -> str:
    """Name of a contender without Markdown."""
    return label(name).replace("`", "")


def blocks_of(rows: Rows) -> Blocks:
    """Rows of a record as (task, seed) → contender → row."""
    found: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["task"], row["seed"]), {})[row["contender"]] = row
    return found


def curves(rows: Rows, path: Path, which: str = "test", tasks: Sequence[str] | None = None) -> None:
    """Draw the loss over the budget, one panel per task: means over the seeds, and bands for `BANDS`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    blocks = blocks_of(rows)
    present = {row["task"] for row in rows}
    shown = list(tasks or [task for task in SUITE if task in present])
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(3.4 * across, 2.7 * down + 0.7), squeeze=False, layout="constrained"
    )
    for axis, task in zip(axes.flat, shown, strict=False):
        for name, colour in COLOURS.items():
            runs = [block[name][which] for (of, _), block in blocks.items() if of == task and name in block]
            if runs:
                _curve(axis, np.array([[np.nan if v is None else v for v in run] for run in runs]), colour, name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(BUDGETS, [f"{budget:g}" for budget in BUDGETS])
        axis.set_xlim(0.2, 16)
        _limit(axis)
        axis.set_title(task, fontsize=10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False)
    figure.supxlabel("CPU seconds, in plain runs", fontsize=10)
    figure.supylabel(f"{which} loss of the network with the best validation loss so far", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _limit(axis: Any) -> None:
    """Show the lines from two plain runs on; bands and bad starts may leave the picture."""
    shown = [np.asarray(line.get_ydata())[np.asarray(line.get_xdata()) >= 2.0] for line in axis.get_lines()]
    values = np.concatenate([values for values in shown if len(values)])
    low, high = values.min(), np.quantile(values, 0.9)
    axis.set_ylim(low - 0.15 * (high - low), high + 0.6 * (high - low))


def _curve(axis: Any, runs: np.ndarray, colour: str, name: str) -> None:
    known = ~np.isnan(runs).any(axis=0)
    marks, runs = np.array(MARKS)[known], runs[:, known]
    main = name in ("delta-stn", "delta-stn-refit")
    axis.plot(
        marks,
        runs.mean(axis=0),
        color=colour,
        lw=2.4 if main else 1.3,
        ls="--" if "refit" in name else "-",
        label=_plain(name),
        zorder=3 + main,
    )
    if name in BANDS:
        axis.fill_between(marks, runs.min(axis=0), runs.max(axis=0), color=colour, alpha=0.13, lw=0)


def critical_differences(rows: Rows, contenders: Sequence[str], budget: float, path: Path) -> None:
    """Draw the mean ranks in test loss; a bar joins contenders that do not differ significantly (Demšar 2006)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    blocks = complete(blocks_of(rows), contenders)
    if len(blocks) < 2:
        raise ValueError(f"at least two tasks or seeds must have all of {', '.join(contenders)}, got {len(blocks)}")
    table = losses(blocks, contenders, budget)
    ranks = mean_ranks(table)
    order = np.argsort(ranks)
    joined = groups(ranks, contenders, comparisons(table, contenders, [task for task, _ in blocks]))
    rank = dict(zip(contenders, ranks, strict=True))
    half = -(-len(order) // 2)
    figure, axis = plt.subplots(figsize=(8.5, 1.0 + 0.24 * half + 0.13 * len(joined)), layout="constrained")
    top = 0.0
    axis.hlines(top, 1, len(order), color="black", lw=1)
    for tick in range(1, len(order) + 1):
        axis.vlines(tick, top, top + 0.25, color="black", lw=1)
        axis.text(tick, top + 0.45, str(tick), ha="center", fontsize=9)
    bars = [0.45 + 0.32 * i for i in range(len(joined))]
    for depth, group in zip(bars, joined, strict=True):
        axis.hlines(top - depth, rank[group[0]] - 0.07, rank[group[-1]] + 0.07, color="#555555", lw=3)
    first = (bars[-1] if bars else 0.0) + 0.8
    for place, index in enumerate(order):
        left = place < half
        depth = first + 0.8 * (place if left else len(order) - 1 - place)
        end = 0.6 if left else len(order) + 0.4
        name, value = contenders[index], ranks[index]
        main = name in ("delta-stn", "delta-stn-refit")
        axis.plot(
            [value, value, end], [top, top - depth, top - depth], color=COLOURS[name] if main else "#888888", lw=0.9
        )
        axis.text(
            end + (-0.1 if left else 0.1),
            top - depth,
            f"{_plain(name)}  {value:.1f}" if left else f"{value:.1f}  {_plain(name)}",
            ha="right" if left else "left",
            va="center",
            fontsize=9,
            fontweight="bold" if main else "normal",
        )
    axis.set_xlim(-3.2, len(order) + 4.2)
    axis.axis("off")
    axis.set_title(
        f"mean rank in test loss after {budget:g} plain runs ({len(blocks)} tasks × seeds; 1 is best)",
        fontsize=10,
        pad=14,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def rate_curve(rows: Rows, path: Path) -> None:
    """Draw the change of the loss with λ's learning rate, one panel per task: each seed, and the mean.

    Args:
        rows: rows of the record of `benchmarks.headroom.study`.
        path: PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found: dict[str, dict[float, dict[int, float]]] = {}
    for row in rows:
        if row["variant"].startswith("rate-") or row["variant"] == "delta-stn":
            factor = float(row["variant"].removeprefix("rate-")) if row["variant"] != "delta-stn" else 1.0
            if "best" in row:
                found.setdefault(row["task"], {}).setdefault(factor, {})[row["seed"]] = row["best"]
    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 2.8), squeeze=False, layout="constrained")
    for axis, (task, by_factor) in zip(axes[0], found.items(), strict=True):
        factors = sorted(by_factor)
        # The reference has more seeds than the others.
        seeds = sorted(set.intersection(*(set(by_factor[factor]) for factor in factors)))
        for seed in seeds:
            points = [by_factor[factor][seed] for factor in factors]
            axis.plot(factors, points, color="#b5cdd2", linewidth=1, label="each seed" if seed == seeds[0] else None)
        means = [np.mean([by_factor[factor][seed] for seed in seeds]) for factor in factors]
        axis.plot(factors, means, color=COLOURS["delta-stn"], marker="o", linewidth=2, label="mean")
        axis.set_xscale("log", base=2)
        axis.set_xticks(factors, [f"{factor:g}" for factor in factors])
        axis.set_title(task, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("best validation loss")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.supxlabel("learning rate of λ, as a factor of the automatic one", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
