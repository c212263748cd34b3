"""Pictures of a comparison: losses, schedules, validation against test loss, and the outer search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize

from ray_deltastn.compare.contenders import CONTENDERS
from ray_deltastn.compare.outcomes import best_trial, finite, spending
from ray_deltastn.plot.figures import legend_below, literal, logarithmic, panels, style
from ray_deltastn.reports.page import save
from ray_deltastn.training.columns import VALUES

LOSS, SCHEDULES, SCATTER, OUTER = "loss.png", "schedules.png", "validation_test.png", "outer_search.png"
#: Colour and line of each method. Solid lines are methods that tune their hyperparameters during training.
LOOKS = {
    "fixed": ("#1f2933", (0, (1, 1))),
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
#: Marker of each method, so that overlapping points can be distinguished.
SHAPES = dict(zip(LOOKS, "X^osDPvh*d", strict=True))
#: Losses above this multiple of the best one are drawn at the end of the axis.
FAR = 10.0


def draw(
    results: pd.DataFrame,
    space: dict[str, dict[str, Any]],
    outer: list[str],
    copies: pd.DataFrame | None,
    out: Path,
    cost: float = 1.0,
) -> list[str]:
    """Draw the pictures of a comparison; pictures of an earlier call are removed.

    Args:
        results: one row per report, see `gather`.
        space: kind and bounds of each hyperparameter, by name.
        outer: names of the outer options in a trial's config.
        copies: copies made by `pbt`, with the columns `method` and `seed`; None if there are none.
        out: folder to write to.
        cost: a self-tuning method has so many times fewer epochs than the others.

    Returns:
        Names of the files.
    """
    for name in (LOSS, SCHEDULES, SCATTER, OUTER):
        (out / name).unlink(missing_ok=True)
    trials = at_their_best(results)
    searching = [method for method in trials["method"].unique() if CONTENDERS[method].searcher]
    drawn = []
    if len(trials):
        drawn.append(plot_loss(results, out / LOSS, cost))
        drawn.append(plot_schedules(results, space, copies, out / SCHEDULES))
        if "test_loss" in trials and finite(trials["test_loss"]).notna().any():
            drawn.append(plot_scatter(trials[finite(trials["test_loss"]).notna()], out / SCATTER))
        if outer and searching:
            drawn.append(plot_outer(trials[trials["method"].isin(searching)], outer, out / OUTER))
    return [path.name for path in drawn]


def curves(results: pd.DataFrame, method: str, spent: str, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Best loss so far over the cost so far, on one grid for all seeds.

    The grid goes from the first report of any seed to the last report of any seed, with equal ratios for seconds. A
    seed keeps its best loss after its last report.

    Args:
        results: one row per report.
        method: name of the method.
        spent: column of the cost, `spent_epochs` or `spent_seconds`.
        points: number of points of the grid.

    Returns:
        The grid `(points,)`, and the losses `(seeds, points)`, which are NaN before the first finite loss of a seed.
    """
    runs = [spending(reports) for _, reports in results[results["method"] == method].groupby("seed")]
    spaced = np.geomspace if spent == "spent_seconds" else np.linspace
    grid = spaced(min(run[spent].iloc[0] for run in runs), max(run[spent].iloc[-1] for run in runs), points)
    losses = np.full((len(runs), points), np.nan)
    for row, run in zip(losses, runs, strict=True):
        places = np.searchsorted(run[spent].to_numpy(), grid, side="right") - 1
        row[places >= 0] = run["best_so_far"].to_numpy()[places[places >= 0]]
    return grid, losses


def together(grid: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop seeds without any finite loss, and then grid points at which a seed has no loss yet.

    Args:
        grid: grid `(points,)`.
        losses: losses `(seeds, points)`.

    Returns:
        The remaining grid and losses.
    """
    losses = losses[~np.isnan(losses).all(1)]
    known = ~np.isnan(losses).any(0)
    return grid[known], losses[:, known]


def plot_loss(results: pd.DataFrame, path: Path, cost: float = 1.0) -> Path:
    """Draw the best validation loss so far over epochs and over device-seconds.

    The line is the mean over seeds, from the point at which all of them have a loss. The band covers all seeds. × marks
    the end of a run with fewer than 98 % of the reports of the longest run.

    Args:
        results: one row per report, see `gather`.
        path: file to write.
        cost: a self-tuning method has so many times fewer epochs than the others.
    """
    figure, axes = panels(2, width=5.6, height=4.4)
    costs = {method: cost if CONTENDERS[method].tuned else 1.0 for method in results["method"].unique()}
    longest = max(costs[method] * len(reports) for (method, _), reports in results.groupby(["method", "seed"]))
    for axis, spent, label in zip(
        axes, ("spent_epochs", "spent_seconds"), ("training epochs, all trials together", "device-seconds"), strict=True
    ):
        for method in results["method"].unique():
            colour, line = LOOKS[method]
            grid, losses = curves(results, method, spent)
            grid, losses = together(grid, losses)
            if not losses.size:
                continue
            axis.fill_between(grid, losses.min(0), losses.max(0), color=colour, alpha=0.09, linewidth=0)
            axis.plot(grid, losses.mean(0), color=colour, linestyle=line, linewidth=1.8, label=method)
            for _, reports in results[results["method"] == method].groupby("seed"):
                if costs[method] * len(reports) < 0.98 * longest:
                    end = spending(reports).iloc[-1]
                    axis.plot(end[spent], end["best_so_far"], "x", color=colour, markersize=7, markeredgewidth=1.8)
        style(axis, label, "")
        logarithmic(axis, "y", results["valid_loss"])
    # A search may take a third of the seconds of a self-tuned run. A linear axis would squeeze it.
    logarithmic(axes[1], "x", results["time_this_iter_s"])
    axes[0].set_ylabel("best validation loss so far")
    return _with_legend(figure, axes, path)


def _with_legend(figure: Any, axes: list[Any], path: Path) -> Path:
    legend_below(figure, axes)
    return save(figure, path)


def history(reports: pd.DataFrame, copies: pd.DataFrame | None, trial_id: str, until: float = np.inf) -> pd.DataFrame:
    """Reports of a trial, in which the time before a copy comes from the trial that was copied.

    Args:
        reports: reports of one method and seed.
        copies: copies made by `pbt` with this seed, see `lineage`; None if there are none.
        trial_id: id of the trial.
        until: `training_iteration` of the last report to include.
    """
    own = reports[(reports["trial_id"] == trial_id) & (reports["training_iteration"] <= until)]
    if copies is not None:
        mine = copies[(copies["trial_id"] == trial_id) & (copies["training_iteration"] <= until)]
        if len(mine):
            last = mine.sort_values("training_iteration").iloc[-1]
            before = history(reports, copies, last["copied_from"], last["training_iteration"] - 1)
            own = pd.concat([before, own[own["training_iteration"] >= last["training_iteration"]]])
    found: pd.DataFrame = own.sort_values("training_iteration", kind="stable")
    return found


def plot_schedules(
    results: pd.DataFrame, space: dict[str, dict[str, Any]], copies: pd.DataFrame | None, path: Path
) -> Path:
    """Draw the hyperparameters of the best trial of each method and seed over its run."""
    figure, axes = panels(len(space), columns=2 if len(space) == 4 else 3, width=3.6, height=2.8)
    for method in results["method"].unique():
        colour, line = LOOKS[method]
        constant = not CONTENDERS[method].tuned and CONTENDERS[method].scheduler != "pbt"
        for number, (seed, reports) in enumerate(results[results["method"] == method].groupby("seed")):
            same = None if copies is None else copies[(copies["method"] == method) & (copies["seed"] == seed)]
            best = history(reports, same, best_trial(reports)["trial_id"].iloc[0])
            for axis, name in zip(axes, space, strict=True):
                share = best["training_iteration"] / best["config/epochs"]
                values = best[VALUES(name)]
                axis.plot(
                    [0, 1] if constant else share,
                    values.iloc[[0, -1]] if constant else values,
                    color=colour,
                    linestyle=line,
                    linewidth=0.8 if constant else 1.5,
                    alpha=0.7,
                    label=method if number == 0 else None,
                )
    for axis, (name, about) in zip(axes, space.items(), strict=True):
        axis.set_title(literal(name), fontsize=10)
        if about["kind"] == "Positive":
            axis.set_yscale("log")
        style(axis, "share of the run", "")
    return _with_legend(figure, axes[:1], path)


def at_their_best(results: pd.DataFrame) -> pd.DataFrame:
    """One row per trial: its report with the lowest validation loss; trials without a finite loss are left out."""
    known = results[finite(results["valid_loss"]).notna()]
    found: pd.DataFrame = known.loc[known.groupby(["method", "seed", "trial_id"], sort=False)["valid_loss"].idxmin()]
    return found


def plot_scatter(trials: pd.DataFrame, path: Path) -> Path:
    """Draw test loss over validation loss, one point per trial; the best trial of each method and seed is large.

    Args:
        trials: one row per trial, see `at_their_best`.
        path: file to write.
    """
    chosen = trials.loc[trials.groupby(["method", "seed"], sort=False)["valid_loss"].idxmin()]
    figure, (axis,) = panels(1, width=6.0, height=5.2)
    for method in trials["method"].unique():
        colour, _ = LOOKS[method]
        every, best = trials[trials["method"] == method], chosen[chosen["method"] == method]
        axis.scatter(every["valid_loss"], every["test_loss"], s=9, color=colour, alpha=0.35, linewidth=0)
        axis.scatter(
            best["valid_loss"],
            best["test_loss"],
            s=64,
            marker=SHAPES[method],
            facecolor=f"{colour}66",
            edgecolor=colour,
            linewidth=1.2,
            label=method,
            zorder=3,
        )
    # The axes show the best trials. Trials with much higher losses are outside.
    losses = chosen[["valid_loss", "test_loss"]]
    low, high = float(losses.min().min()), float(losses.max().max())
    room = 0.15 * max(high - low, 0.1 * abs(high))
    low, high = (0.85 * low, 1.6 * high) if low > 0 else (low - room, high + room)
    axis.plot([low, high], [low, high], color="#9aa3ad", linewidth=0.8, zorder=0)
    style(axis, "lowest validation loss of a trial", "test loss of the same report")
    axis.set(xlim=(low, high), ylim=(low, high))
    for which in ("x", "y"):
        logarithmic(axis, which, pd.Series([low, high]))
    axis.legend(frameon=False, loc="lower right", fontsize=8)
    return save(figure, path)


def plot_outer(trials: pd.DataFrame, outer: list[str], path: Path) -> Path:
    """Draw a line per trial of the searching methods through its outer options and its best validation loss.

    Args:
        trials: one row per trial, see `at_their_best`.
        outer: names of the options in a trial's config.
        path: file to write.
    """
    loss, least = trials["valid_loss"], float(trials["valid_loss"].min())
    worst = min(float(loss.max()), least + (FAR - 1) * abs(least))
    columns = [trials[f"config/{name.replace('.', '/')}"] for name in outer]
    scales = [_scale(values) for values in [*columns, loss.clip(upper=worst)]]
    heights = np.column_stack([places for places, _ in scales])
    ticks = [marks for _, marks in scales]
    if worst < loss.max():
        ticks[-1] = {place: f"≥ {mark}" if place == 1 else mark for place, mark in ticks[-1].items()}
    methods = list(trials["method"].unique())
    figure, axes = panels(len(methods), columns=3, width=max(3.6, 0.9 * len(ticks)), height=3.2)
    for axis, method in zip(axes, methods, strict=True):
        mine = (trials["method"] == method).to_numpy()
        order = np.argsort(-heights[mine][:, -1], kind="stable")  # the best trials are drawn last, on top
        drawn = LineCollection(
            [np.column_stack([np.arange(heights.shape[1]), row]) for row in heights[mine][order]],
            array=heights[mine][order, -1],
            norm=Normalize(0, 1),
            cmap="viridis",
            alpha=np.where(heights[mine][order, -1] < 1, 0.8, 0.2),
        )
        axis.add_collection(drawn)
        for number, marks in enumerate(ticks):
            axis.plot([number, number], [0, 1], color="#9aa3ad", linewidth=0.8, zorder=0)
            for place, mark in marks.items():
                inside = 0 < place < 1
                away, side = (0.0, "center") if inside else (0.04, "bottom") if place else (-0.04, "top")
                axis.text(number, place + away, literal(mark), ha="left" if inside else "center", va=side, fontsize=8)
        axis.set(xlim=(-0.3, heights.shape[1] - 0.7), ylim=(-0.12, 1.12), yticks=[])
        slanted = len(outer) > 2
        axis.set_xticks(
            range(heights.shape[1]),
            [*(literal(name.split(".")[-1]) for name in outer), "loss"],
            rotation=30 * slanted,
            ha="right" if slanted else "center",
        )
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(method, fontsize=10, color=LOOKS[method][0])
    return save(figure, path)


def _scale(values: pd.Series) -> tuple[np.ndarray, dict[float, str]]:
    """Positions of an option's values in [0, 1], and the tick labels by position.

    Positive numbers whose range spans a factor of 10 or more are placed by their logarithm, other numbers linearly.
    Names, and numbers with missing values, are placed at equal distances.
    """
    if not pd.api.types.is_numeric_dtype(values) or values.isna().any():
        text = values.map(lambda v: "none" if pd.isna(v) else f"{v:g}" if isinstance(v, float) else str(v))
        known = sorted(text.unique())
        places = {name: number / max(len(known) - 1, 1) for number, name in enumerate(known)}
        return text.map(places).to_numpy(dtype=float), {place: name for name, place in places.items()}
    numbers = values.to_numpy(dtype=float)
    low, high = float(numbers.min()), float(numbers.max())
    marks = {0.0: f"{low:.3g}", 1.0: f"{high:.3g}"}
    if low > 0 and high / low >= 10:
        numbers, low, high = np.log(numbers), float(np.log(low)), float(np.log(high))
    return (numbers - low) / max(high - low, 1e-12), marks
