"""Tables, pictures and one self-contained HTML page of an experiment, from its results folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ray_deltastn.plot.pictures import draw_loss, draw_schedules
from ray_deltastn.reports.contact_sheet import NoImagesError, contact_sheet
from ray_deltastn.reports.page import Picture, save, write_page
from ray_deltastn.reports.response import RESPONSE, SIGNAL, draw_response, plot_signal
from ray_deltastn.reports.results import Results
from ray_deltastn.tasks import build_task
from ray_deltastn.tune.folder.layout import PAGE

SCHEDULES, LOSS, SHEET = "schedules.png", "loss_over_time.png", "augmentation.png"
logger = logging.getLogger(__name__)


def plot_schedules(results: Results) -> Path:
    """Draw each hyperparameter of the best trial over epochs, with the band s(λ ± σ)."""
    return save(draw_schedules([results.run]), results.folder / SCHEDULES)


def plot_loss(results: Results) -> Path:
    """Draw the validation loss of every trial, and the best loss so far, over seconds inside all trials."""
    return save(draw_loss([results.run]), results.folder / LOSS)


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
