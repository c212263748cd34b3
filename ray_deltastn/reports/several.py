"""Several experiments in one picture and one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ray_deltastn.plot.figures import literal, panels, style
from ray_deltastn.reports.page import save
from ray_deltastn.reports.results import Results
from ray_deltastn.training.columns import SECONDS, VALUES

#: Largest number of hyperparameters that are drawn.
MOST = 7
_COLOURS = ("#2563a8", "#c4561d", "#3f8f3a", "#7b5ea7", "#8d6748", "#4d565f")


def names_of(folders: Sequence[Path]) -> list[str]:
    """A different name for each results folder: as few of the last parts of its path as that takes.

    Args:
        folders: results folders.

    Raises:
        ValueError: if a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError(f"`DIR` must be different folders, got {', '.join(map(str, folders))}")
    depth = 1
    while len({own[-depth:] for own in parts}) < len(parts):
        depth += 1
    return ["/".join(own[-depth:]) for own in parts]


def draw_several(every: Sequence[Results], names: Sequence[str], path: Path) -> Path:
    """Draw the best loss so far of several experiments, and the hyperparameters of their best trials.

    Args:
        every: the experiments.
        names: their names in the legend.
        path: PNG file to write.

    Returns:
        The path.
    """
    shared = list(dict.fromkeys(name for results in every for name in results.space))[:MOST]
    figure, axes = panels(1 + len(shared), width=3.4, height=2.8)
    for index, (results, name) in enumerate(zip(every, names, strict=True)):
        colour = _COLOURS[index % len(_COLOURS)]
        reports = results.reports  # in order of time
        spent = reports.groupby("trial_id")[SECONDS("total")].diff().fillna(reports[SECONDS("total")]).cumsum()
        loss = reports["valid_loss"].replace([np.inf, -np.inf], np.nan).cummin()
        axes[0].step(spent, loss, where="post", color=colour, label=literal(name))
        best = reports[reports["trial_id"] == results.best["trial_id"]].sort_values("steps")
        for axis, tuned in zip(axes[1:], shared, strict=True):
            if tuned in results.space:
                axis.plot(best["epoch"], best[VALUES(tuned)], color=colour)
    axes[0].set_title("best validation loss so far", fontsize=10)
    axes[0].set_yscale("log")
    style(axes[0], "seconds inside trials", "")
    axes[0].legend(frameon=False, fontsize=8)
    for axis, tuned in zip(axes[1:], shared, strict=True):
        axis.set_title(literal(tuned), fontsize=10)
        if any(results.space.get(tuned, {}).get("kind") == "Positive" for results in every):
            axis.set_yscale("log")
        style(axis, "epoch of the best trial", "")
    return save(figure, path)


def several_table(every: Sequence[Results], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with the best trial of each experiment.

    Args:
        every: the experiments.
        names: their names.
    """
    headings = list(dict.fromkeys(heading for results in every for heading in results.overview(most=1)[0][1:]))
    rows = []
    for results, name in zip(every, names, strict=True):
        header, (best, *_) = results.overview(most=1)
        found = dict(zip(header, best, strict=True))
        rows.append([name, *(found.get(heading, "–") for heading in headings)])
    return ["experiment", *headings], rows
