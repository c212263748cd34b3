"""Pictures of a comparison: losses, schedules, over-fitting of the validation set, the outer search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize

from ray_deltastn.compare.plan import CONTENDERS
from ray_deltastn.compare.tables import best_trial, finite, spending
from ray_deltastn.page import panels, save, style

LOSS, SCHEDULES, SCATTER, OUTER = "loss.png", "schedules.png", "validation_test.png", "outer_search.png"
#: Colour and line of each method: dashed where hyperparameters are constant, solid where the method tunes them.
LOOKS = {
    "grid": ("#9aa3ad", ":"),
    "random": ("#4d565f", "--"),
    "bo": ("#2563a8", "--"),
    "asha": ("#8d6748", "--"),
    "pbt": ("#7b5ea7", "-."),
    "stn": ("#d1495b", "-"),
    "centered-stn": ("#edae49", "-"),
    "delta-stn": ("#00798c", "-"),
    "hybrid": ("#3f8f3a", "-"),
}
#: Trials this many times worse than the best are all drawn at the end of the axis.
FAR = 10.0


def draw(results: pd.DataFrame, space: dict[str, dict[str, Any]], outer: list[str], out: Path) -> None:
    """Draw all pictures of a comparison into its folder.

    Args:
        results: one row per report, see `gather`.
        space: kind and bounds of each hyperparameter, by name.
        outer: names of the outer options in a trial's config.
        out: folder.
    """
    plot_loss(results, out / LOSS)
    plot_schedules(results, space, out / SCHEDULES)
    if "test_loss" in results:
        plot_scatter(results, out / SCATTER)
    if outer:
        plot_outer(results, outer, out / OUTER)


def curves(results: pd.DataFrame, method: str, spent: str, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Best loss so far over what had been spent, on one grid for all seeds.

    Args:
        results: one row per report.
        method: whose.
        spent: `spent_epochs` or `spent_seconds`.
        points: of the grid, which ends where the first seed does.

    Returns:
        The grid `(points,)`, and `(seeds, points)` losses, NaN before the first finite one.
    """
    runs = [spending(reports) for _, reports in results[results["method"] == method].groupby("seed")]
    grid = np.linspace(max(run[spent].iloc[0] for run in runs), min(run[spent].iloc[-1] for run in runs), points)
    places = [np.searchsorted(run[spent].to_numpy(), grid, side="right") - 1 for run in runs]
    return grid, np.stack([r["best_so_far"].to_numpy()[np.maximum(i, 0)] for r, i in zip(runs, places, strict=True)])


def plot_loss(results: pd.DataFrame, path: Path) -> Path:
    """Draw the best validation loss so far over epochs and over seconds; the band is all seeds, the line their mean."""
    figure, axes = panels(2, width=5.6, height=4.4)
    for axis, spent, label in zip(
        axes, ("spent_epochs", "spent_seconds"), ("training epochs, all trials together", "device-seconds"), strict=True
    ):
        for method in results["method"].unique():
            colour, line = LOOKS[method]
            grid, losses = curves(results, method, spent)
            axis.fill_between(grid, losses.min(0), losses.max(0), color=colour, alpha=0.13, linewidth=0)
            axis.plot(grid, losses.mean(0), color=colour, linestyle=line, linewidth=1.8, label=method)
        style(axis, label, "")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}" if _decades(axis) < 1 else "")
    axes[0].set_ylabel("best validation loss so far")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return save(figure, path)


def _decades(axis: Any) -> float:
    low, high = axis.get_ylim()
    return float(np.log10(high / low))


def plot_schedules(results: pd.DataFrame, space: dict[str, dict[str, Any]], path: Path) -> Path:
    """Draw every hyperparameter over the run of the best trial of each method and seed."""
    figure, axes = panels(len(space), width=3.3, height=2.7)
    for method in results["method"].unique():
        colour, line = LOOKS[method]
        constant = CONTENDERS[method].method == "fixed" and CONTENDERS[method].scheduler != "pbt"
        for number, (_, reports) in enumerate(results[results["method"] == method].groupby("seed")):
            best = best_trial(reports)
            for axis, name in zip(axes, space, strict=True):
                share = best["training_iteration"] / best["config/epochs"]
                values = best[f"hyperparameters/{name}"]
                axis.plot(
                    [0, 1] if constant else share, values.iloc[[0, -1]] if constant else values,
                    color=colour, linestyle=line, linewidth=0.8 if constant else 1.5, alpha=0.7,
                    label=method if number == 0 else None,
                )  # fmt: skip
    for axis, (name, about) in zip(axes, space.items(), strict=True):
        axis.set_title(name, fontsize=10)
        if about["kind"] == "Positive":
            axis.set_yscale("log")
        style(axis, "share of the run", "")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return save(figure, path)


def at_their_best(results: pd.DataFrame) -> pd.DataFrame:
    """One row per trial: its report with the lowest validation loss; none of a trial that never had a finite one."""
    known = results[finite(results["valid_loss"]).notna()]
    return known.loc[known.groupby(["method", "seed", "trial_id"], sort=False)["valid_loss"].idxmin()]


def plot_scatter(results: pd.DataFrame, path: Path) -> Path:
    """Draw validation against test loss: small, every trial; large, the one that each seed chose."""
    trials = at_their_best(results)
    chosen = trials.loc[trials.groupby(["method", "seed"], sort=False)["valid_loss"].idxmin()]
    figure, (axis,) = panels(1, width=6.0, height=5.2)
    for method in results["method"].unique():
        colour, _ = LOOKS[method]
        every, best = trials[trials["method"] == method], chosen[chosen["method"] == method]
        axis.scatter(every["valid_loss"], every["test_loss"], s=9, color=colour, alpha=0.35, linewidth=0)
        axis.scatter(
            best["valid_loss"], best["test_loss"], s=60, color=colour, edgecolor="white", label=method, zorder=3
        )
    # What came near the best is what there is to see; trials far off are left out.
    top = 3 * float(chosen[["valid_loss", "test_loss"]].max().max())
    low = 0.85 * float(chosen[["valid_loss", "test_loss"]].min().min())
    axis.plot([low, top], [low, top], color="#9aa3ad", linewidth=0.8, zorder=0)
    style(axis, "validation loss of a trial at its best", "test loss at the same report")
    axis.set(xscale="log", yscale="log", xlim=(low, top), ylim=(low, top))
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter("{x:g}")
        each.set_minor_formatter("")
    axis.legend(frameon=False, loc="lower right", fontsize=8)
    return save(figure, path)


def plot_outer(results: pd.DataFrame, outer: list[str], path: Path) -> Path:
    """Draw the outer options of every trial of the searching methods and the loss each reached, as one line."""
    methods = [method for method in results["method"].unique() if CONTENDERS[method].searcher]
    if not methods:
        return path
    trials = at_their_best(results)
    columns = [f"config/{name.replace('.', '/')}" for name in outer]
    best = float(trials["valid_loss"].min())
    worst = min(float(trials["valid_loss"].max()), FAR * best)
    loss = trials["valid_loss"].clip(upper=worst)
    options, ends = zip(*(_places(values) for values in [*(trials[column] for column in columns), loss]), strict=True)
    if worst < trials["valid_loss"].max():
        ends = (*ends[:-1], (ends[-1][0], f"≥ {ends[-1][1]}"))
    heights = np.column_stack(options)
    figure, axes = panels(len(methods), columns=3, width=3.8, height=3.0)
    for axis, method in zip(axes, methods, strict=True):
        mine = (trials["method"] == method).to_numpy()
        order = np.argsort(-loss.to_numpy()[mine], kind="stable")  # the best on top
        drawn = LineCollection(
            [np.column_stack([np.arange(heights.shape[1]), row]) for row in heights[mine][order]],
            array=heights[mine][order, -1], norm=Normalize(0, 1), cmap="viridis", alpha=0.8,
        )  # fmt: skip
        axis.add_collection(drawn)
        for place, (low, high) in enumerate(ends):
            axis.plot([place, place], [0, 1], color="#9aa3ad", linewidth=0.8, zorder=0)
            axis.text(place, -0.04, low, ha="center", va="top", fontsize=8)
            axis.text(place, 1.04, high, ha="center", va="bottom", fontsize=8)
        axis.set(xlim=(-0.3, heights.shape[1] - 0.7), ylim=(-0.12, 1.12), yticks=[])
        axis.set_xticks(range(heights.shape[1]), [*outer, "loss"])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(method, fontsize=10, color=LOOKS[method][0])
    return save(figure, path)


def _places(values: pd.Series) -> tuple[np.ndarray, tuple[str, str]]:
    """Values of an option in 0 … 1, and the names of both ends; several powers of ten are spread by their logarithm."""
    if not pd.api.types.is_numeric_dtype(values):
        known = sorted(values.astype(str).unique())
        return values.astype(str).map(known.index).to_numpy() / max(len(known) - 1, 1), (known[0], known[-1])
    low, high = float(values.min()), float(values.max())
    numbers = values.to_numpy(dtype=float)
    if low > 0 and high / low >= 10:
        numbers, ends = np.log(numbers), (np.log(low), np.log(high))
    else:
        ends = (low, high)
    return (numbers - ends[0]) / max(ends[1] - ends[0], 1e-12), (f"{low:.3g}", f"{high:.3g}")
