"""Pictures of what the response of the best trial says, and of how λ has moved."""

from __future__ import annotations

import logging
import time

import pandas as pd

from ray_deltastn.plot.figures import literal, panels, style
from ray_deltastn.plot.pictures import draw_sensitivity
from ray_deltastn.reports.page import save
from ray_deltastn.reports.results import Results
from ray_deltastn.training.columns import AT_BOUND, SCALES, SIGNALS
from ray_deltastn.training.tuner import SelfTuner
from ray_deltastn.tune.finished import FinishedTrial

RESPONSE, SIGNAL = "response.png", "signal.png"
#: Share of the reports over which the lines of `plot_signal` are averaged.
SMOOTHED = 0.1
#: Seconds that the picture of the response may take, and the number of examples that tells how long it takes.
SECONDS, FEWEST = 20.0, 20
logger = logging.getLogger(__name__)


def draw_response(results: Results) -> None:
    """Draw the predicted change of the validation loss along each hyperparameter.

    It needs the newest checkpoint of the best trial and the data of the task. Methods without a response have no such
    picture.
    """
    try:
        trial = FinishedTrial(results.folder, str(results.best["trial_id"]))
        if not trial.tunes:
            return
        tuner = trial.tuner()
        if tuner.response is None:
            return
        table = tuner.sensitivity(_affordable(tuner))
    except Exception as error:  # the checkpoint, the task or its data may be missing; a picture must not end a run
        logger.warning("the picture of the response could not be drawn: %s", error)
        return
    plot_response(results, table)


def _affordable(tuner: SelfTuner) -> int:
    """Number of validation examples for a picture that takes about `SECONDS`, by the time of a few examples.

    Raises:
        ValueError: if they are fewer than `FEWEST`.
    """
    started = time.perf_counter()
    tuner.sensitivity(FEWEST)
    affordable = int(FEWEST * SECONDS / max(time.perf_counter() - started, 1e-6))
    if affordable < FEWEST:
        raise ValueError(f"the network is too slow on this machine: {FEWEST} examples took more than {SECONDS:g} s")
    return affordable


def plot_response(results: Results, table: pd.DataFrame) -> None:
    """Draw the table of `SelfTuner.sensitivity`: one panel per hyperparameter, and a band of two standard errors."""
    save(draw_sensitivity([results.run], [table]), results.folder / RESPONSE)


def plot_signal(results: Results) -> None:
    """Draw how consistent the hyper steps of the best trial are, its σ, and the share of steps with λ on a limit."""
    reports = results.run.best_reports()
    names = [name for name in results.space if SIGNALS(name) in reports and (reports[SIGNALS(name)] > 0).any()]
    if not names:
        return
    window = max(1, round(SMOOTHED * len(reports)))
    figure, axes = panels(3)
    shown = (
        ("signal: |mean| / RMS of the hyper steps", SIGNALS),
        ("σ", SCALES),
        ("share of steps at a limit", AT_BOUND),
    )
    for axis, (title, columns) in zip(axes, shown, strict=True):
        for name in names:
            axis.plot(
                reports["epoch"],
                reports[columns(name)].rolling(window, min_periods=1).mean(),
                label=literal(name),
                lw=1.3,
            )
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0.0, None if columns is SCALES else 1.02)
        style(axis, "epoch", "")
    axes[0].legend(frameon=False, fontsize=7)
    save(figure, results.folder / SIGNAL)
