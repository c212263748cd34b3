"""Tables, pictures and one self-contained HTML page of an experiment, from its results folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ray_deltastn import domains
from ray_deltastn.maps import MAPS
from ray_deltastn.reports.contact_sheet import NoImagesError, contact_sheet
from ray_deltastn.reports.page import Picture, literal, panels, save, style, write_page
from ray_deltastn.reports.response import RESPONSE, SIGNAL, draw_response, plot_signal
from ray_deltastn.reports.results import Results
from ray_deltastn.tasks import build_task
from ray_deltastn.training.columns import SCALES, SECONDS, VALUES
from ray_deltastn.tune.folder.layout import PAGE

SCHEDULES, LOSS, SHEET = "schedules.png", "loss_over_time.png", "augmentation.png"
logger = logging.getLogger(__name__)
_BLUE, _GREY, _ORANGE = "#2563a8", "#9aa3ad", "#c4561d"


def _band(results: Results, reports: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """s(λ − σ) and s(λ + σ) over the reports of a trial."""
    about = results.space[name]
    # Older folders do not name the map. Their experiments used the paper's.
    named = about.get("map") or getattr(domains, about["kind"])(0.0).map_in("open").name
    s = MAPS[named.removeprefix("rounded ")]
    low, high = (torch.tensor(float(about[key]), dtype=torch.float64) for key in ("low", "high"))
    value = torch.tensor(reports[VALUES(name)].to_numpy(dtype=float))
    scale = torch.tensor(reports[SCALES(name)].to_numpy(dtype=float))
    lam = s.inverse(value, low, high)
    return s.forward(lam - scale, low, high).numpy(), s.forward(lam + scale, low, high).numpy()


def plot_schedules(results: Results) -> Path:
    """Draw each hyperparameter of the best trial over epochs, with the band s(λ ± σ)."""
    reports = results.reports[results.reports["trial_id"] == results.best["trial_id"]].sort_values("steps")
    names = list(results.space)
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        low, high = _band(results, reports, name)
        axis.fill_between(reports["epoch"], low, high, color=_BLUE, alpha=0.18, linewidth=0, label="s(λ ± σ)")
        axis.plot(reports["epoch"], reports[VALUES(name)], color=_BLUE, label="s(λ)")
        axis.set_title(literal(name), fontsize=10)
        if results.space[name]["kind"] == "Positive":
            axis.set_yscale("log")
        style(axis, "epoch", "")
    axes[0].legend(frameon=False, fontsize=8)
    return save(figure, results.folder / SCHEDULES)


def plot_loss(results: Results) -> Path:
    """Draw the validation loss of every trial, and the best loss so far, over seconds inside all trials."""
    reports = results.reports.copy()  # `results.csv` is in order of time
    reports["spent"] = reports.groupby("trial_id")[SECONDS("total")].diff().fillna(reports[SECONDS("total")]).cumsum()
    loss = reports["valid_loss"].replace([np.inf, -np.inf], np.nan)
    figure, (axis,) = panels(1, width=6.4, height=3.8)
    for index, (_, trial) in enumerate(reports.groupby("trial_id", sort=False)):
        axis.plot(
            trial["spent"],
            loss[trial.index],
            color=_GREY,
            alpha=0.55,
            linewidth=0.8,
            label="one trial" if index == 0 else None,
        )
    axis.step(reports["spent"], loss.cummin(), where="post", color=_ORANGE, linewidth=2, label="best so far")
    axis.set_yscale("log")
    # The limit keeps the other trials readable if one diverges.
    axis.set_ylim(top=1.5 * reports.groupby("trial_id")["valid_loss"].first().replace(np.inf, np.nan).max())
    style(axis, "seconds inside trials, summed over trials", "validation loss")
    axis.legend(frameon=False)
    return save(figure, results.folder / LOSS)


def _write_page(results: Results) -> Path:
    """Write `report.html`, which contains the pictures and the tables."""
    header, rows = results.trial_table()
    drawn = [
        ("Schedules", "Hyperparameters of the best trial over its epochs. The band is s(λ ± σ).", SCHEDULES),
        ("Loss over time", "Validation loss of every trial over the seconds spent inside all trials.", LOSS),
        (
            "What the response says",
            "Predicted change of the validation loss of the best trial if one hyperparameter moved by up to two σ from "
            "its last value (dashed). The band is two standard errors over the validation data.",
            RESPONSE,
        ),
        (
            "How λ has moved",
            "Signal: 1 if all hyper steps of a report have the same direction and length, near 0 if they are noise.",
            SIGNAL,
        ),
        ("Augmentation", "Training images at the low end, the middle and the high end of each range.", SHEET),
    ]
    pictures = [
        Picture(h, text, results.folder / name, wide=name in (SCHEDULES, RESPONSE, SIGNAL)) for h, text, name in drawn
    ]
    return write_page(
        "report.html",
        results.folder / PAGE,
        title=results.folder.name,
        metric=results.config["tune"]["metric"].replace("_", " "),
        gained=results.gained(),
        first=results.overview(most=1),
        best=results.best_table(),
        every=results.overview(),
        header=header,
        rows=rows,
        pictures=[picture for picture in pictures if picture.path.exists()],
        notes=results.notes(),
        config=json.dumps(results.config, indent=2),
    )


def draw_augmentation(results: Results) -> None:
    """Draw the contact sheet of a task on images, unless the file exists; it needs the task's data."""
    config, path = results.config, results.folder / SHEET
    if path.exists():
        return
    try:
        task = build_task({"task": config["task"], **config["options"], **config["train"]})
        contact_sheet(task, path)
    except NoImagesError:
        pass
    except (FileNotFoundError, ValueError) as error:  # the task or its data may be missing on this machine
        logger.warning("the augmentation picture could not be drawn: %s", error)


def write_report(folder: Path) -> Results:
    """Write the pictures and the page of an experiment to its results folder.

    Args:
        folder: results folder of `ray-deltastn run`.

    Returns:
        The results that the page shows.

    Raises:
        FileNotFoundError: if the folder holds no finished experiment.
    """
    results = Results(folder)
    plot_schedules(results)
    plot_loss(results)
    draw_response(results)
    plot_signal(results)
    draw_augmentation(results)
    _write_page(results)
    return results
