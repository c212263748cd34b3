"""Pictures of runs: their schedules, their losses over time, and what their responses say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ray_deltastn import domains
from ray_deltastn.maps import MAPS
from ray_deltastn.plot.figures import COLOURS, GREY, ORANGE, legend_below, literal, logarithmic, panels, style
from ray_deltastn.plot.sources import TRIAL, Run
from ray_deltastn.training.columns import SCALES, SECONDS, VALUES

#: What the losses are drawn over, and its column and label.
Over = Literal["seconds", "epochs"]
_OVER = {
    "seconds": (SECONDS("total"), "seconds inside trials"),
    "epochs": ("epoch", "epochs"),
}
#: Below this first value, a hyperparameter of an unknown domain is drawn on a logarithmic axis.
NEAR_ZERO = 0.01
#: Width of the band around a predicted change of the loss, in standard errors.
ERRORS = 2.0


def draw_schedules(runs: Sequence[Run]) -> Figure:
    """Each hyperparameter of the best trial over epochs, with the band s(λ ± σ) where the domains are known.

    Raises:
        ValueError: if a run has no hyperparameters or no epochs.
    """
    for run in runs:
        run.require("epoch")
        if not run.names:
            raise ValueError(f"reports must have columns `{VALUES('…')}`, got none for '{run.label}'")
        run.require(*map(VALUES, run.names))
    tables = [run.best_reports() for run in runs]
    names = list(dict.fromkeys(name for run in runs for name in run.names))
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        for run, reports, colour in _coloured(runs, tables):
            if name not in run.names:
                continue
            known = reports[reports[VALUES(name)].notna()]
            if name in run.space and SCALES(name) in known:
                low, high = _band(run.space[name], known, name)
                label = "s(λ ± σ)" if len(runs) == 1 else None
                axis.fill_between(known["epoch"], low, high, color=colour, alpha=0.18, linewidth=0, label=label)
            label = run.label if len(runs) > 1 else "s(λ)"
            # One report is a point, which a line would not show.
            mark = "." if len(known) == 1 else ""
            axis.plot(known["epoch"], known[VALUES(name)], color=colour, marker=mark, label=literal(label))
        axis.set_title(literal(name), fontsize=10)
        if _on_a_log_scale(runs, name, tables):
            axis.set_yscale("log")
        style(axis, "epoch", "")
    _add_legend(figure, axes, len(runs))
    return figure


def draw_loss(runs: Sequence[Run], over: Over = "seconds") -> Figure:
    """The validation loss of every trial, and the best loss so far, over the cost of all trials of a run.

    Raises:
        ValueError: if a run has no losses or no cost, or `over` is unknown.
    """
    if over not in get_args(Over):
        raise ValueError(f"`over` must be one of {', '.join(get_args(Over))}, got {over!r}")
    column, label = _OVER[over]
    figure, (axis,) = panels(1, width=6.4, height=3.8)
    first = []
    for run, _, colour in _coloured(runs, runs):
        run.require("valid_loss", column)
        reports = run.reports.reset_index(drop=True)
        spent = reports.groupby(TRIAL)[column].diff().fillna(reports[column]).cumsum()
        loss = reports["valid_loss"].replace([np.inf, -np.inf], np.nan)
        trials = [own.index for _, own in reports.groupby(TRIAL, sort=False)]
        alone = len(runs) == 1
        for number, own in enumerate(trials):
            axis.plot(
                spent[own],
                loss[own],
                color=GREY if alone else colour,
                alpha=0.55 if alone else 0.35,
                linewidth=0.8,
                label="one trial" if number == 0 and alone else None,
            )
        axis.step(
            spent,
            loss.cummin().ffill(),
            where="post",
            color=ORANGE if alone else colour,
            linewidth=2,
            label="best so far" if alone else literal(run.label),
        )
        first += [loss[own].iloc[0] for own in trials]
    every = pd.concat([run.reports["valid_loss"] for run in runs], ignore_index=True)
    logarithmic(axis, "y", every)
    # The limit keeps the other trials readable if one diverges.
    top = 1.5 * pd.Series(first, dtype=float).max()
    if 0 < top < every.replace(np.inf, np.nan).max():
        axis.set_ylim(top=top)
        logarithmic(axis, "y", every)
    many = any(run.reports[TRIAL].nunique() > 1 for run in runs)
    style(axis, f"{label}, summed over trials" if many else label, "validation loss")
    axis.legend(frameon=False)
    return figure


def draw_sensitivity(runs: Sequence[Run], tables: Sequence[pd.DataFrame]) -> Figure:
    """The predicted change of the validation loss along each hyperparameter, with a band of two standard errors.

    Args:
        runs: the runs, whose labels and hyperparameters are used.
        tables: the table of `SelfTuner.sensitivity` of each run.
    """
    names = list(dict.fromkeys(name for table in tables for name in table["hyperparameter"]))
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        for run, table, colour in _coloured(runs, tables):
            own = table[table["hyperparameter"] == name]
            if own.empty:
                continue
            axis.plot(own["value"], own["change"], color=colour, label=literal(run.label))
            low, high = (own["change"] + sign * ERRORS * own["error"] for sign in (-1, 1))
            axis.fill_between(own["value"], low, high, color=colour, alpha=0.18, linewidth=0)
            center = own.loc[own["offset"] == 0.0, "value"]
            axis.axvline(center.iloc[0], color=GREY if len(runs) == 1 else colour, linewidth=1, linestyle="--")
        axis.axhline(0.0, color=GREY, linewidth=0.8)
        axis.set_title(literal(name), fontsize=10)
        if any(run.space.get(name, {}).get("kind") == "Positive" for run in runs):
            axis.set_xscale("log")
        style(axis, "value", "change of validation loss" if axis is axes[0] else "")
    if len(runs) > 1:
        legend_below(figure, axes)
    return figure


def _coloured(runs: Sequence[Run], parts: Sequence[Any]) -> list[tuple[Run, Any, str]]:
    return [(run, part, COLOURS[n % len(COLOURS)]) for n, (run, part) in enumerate(zip(runs, parts, strict=True))]


def _add_legend(figure: Figure, axes: list[Any], count: int) -> None:
    if count > 1:
        legend_below(figure, axes)
    else:
        axes[0].legend(frameon=False, fontsize=8)


def _on_a_log_scale(runs: Sequence[Run], name: str, tables: Sequence[pd.DataFrame]) -> bool:
    """Whether a hyperparameter acts by its order of magnitude; unknown ones do if they start near zero, above it."""
    kinds = [run.space[name]["kind"] for run in runs if name in run.space]
    if kinds:
        return "Positive" in kinds
    values = pd.concat([table[VALUES(name)] for table in tables if VALUES(name) in table]).dropna()
    return bool(len(values) and values.min() > 0 and values.iloc[0] < NEAR_ZERO)


def _band(about: dict[str, Any], reports: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """s(λ − σ) and s(λ + σ) over the reports of a trial."""
    # Older folders do not name the map. Their experiments used the paper's.
    named = about.get("map") or getattr(domains, about["kind"])(0.0).map_in("open").name
    s = MAPS[named.removeprefix("rounded ")]
    low, high = (torch.tensor(float(about[key]), dtype=torch.float64) for key in ("low", "high"))
    value = torch.tensor(reports[VALUES(name)].to_numpy(dtype=float))
    scale = torch.tensor(reports[SCALES(name)].to_numpy(dtype=float))
    lam = s.inverse(value, low, high)
    return s.forward(lam - scale, low, high).numpy(), s.forward(lam + scale, low, high).numpy()
