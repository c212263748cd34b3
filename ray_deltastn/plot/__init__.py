"""Pictures of runs for notebooks and papers: schedules, losses over time, and what the response says.

Each function takes one or several runs, as arguments, in a list, or in a mapping from their labels. A run is one of

- a `SelfTuner`;
- a results folder of `ray-deltastn run`, as a path or a text;
- a data frame with one row per report, or a schedule;
- a `ResultGrid`, a `Result` or an `ExperimentAnalysis` of Ray Tune.

A function returns a Matplotlib figure, which a notebook shows and `savefig` writes. It neither opens a window nor
changes a setting of Matplotlib.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from ray_deltastn.plot.pictures import Over, draw_loss, draw_schedules, draw_sensitivity
from ray_deltastn.plot.responses import response_of
from ray_deltastn.plot.sources import read
from ray_deltastn.space import HyperSpace

__all__ = ["loss_over_time", "schedules", "sensitivity"]


def schedules(*runs: Any, space: HyperSpace | None = None) -> Figure:
    """Draw the hyperparameters of a run over its epochs, one panel each, with the band s(λ ± σ).

    Of a search it draws the best trial: the one with the lowest `valid_loss`, or in a results folder the best one by
    the metric of the search.

    Args:
        runs: see `ray_deltastn.plot`.
        space: the hyperparameters, for the bands and the logarithmic axes of data frames and results of Ray Tune, which
            do not have them. Without it these have no bands.

    Raises:
        TypeError: if a run is of another kind.
        ValueError: if a run has no reports, or no values of hyperparameters in them.
        FileNotFoundError: if a folder holds no finished experiment.

    Examples:
        >>> tuner = SelfTuner(task, epochs=3)
        >>> reports = list(tuner.fit())
        >>> figure = rd.plot.schedules(tuner)
        >>> [axis.get_title() for axis in figure.axes]
        ['dropout', 'decay']
    """
    return draw_schedules(read(runs, space))


def loss_over_time(*runs: Any, over: Over = "seconds") -> Figure:
    """Draw the validation loss of every trial, and the best one so far, over seconds or epochs.

    Args:
        runs: see `ray_deltastn.plot`.
        over: `seconds` inside trials, or `epochs`; both are summed over the trials of a run.

    Raises:
        TypeError: if a run is of another kind.
        ValueError: if a run has no reports, or no losses, seconds or epochs in them.
        FileNotFoundError: if a folder holds no finished experiment.
    """
    return draw_loss(read(runs), over)


def sensitivity(*runs: Any, space: HyperSpace | None = None, examples: int | None = None) -> Figure:
    """Draw the change of the validation loss that the response predicts if one hyperparameter moves by up to two σ.

    The band is two standard errors over the validation data, and the dashed line is the present value. A folder and a
    result of Ray Tune need the checkpoint of the best trial, and the task is built again from the trial's config.

    Args:
        runs: see `ray_deltastn.plot`; a data frame is one of `SelfTuner.sensitivity`.
        space: the hyperparameters, for the logarithmic axes of data frames.
        examples: number of validation examples, the first ones; None means all.

    Raises:
        TypeError: if a run is of another kind, or its task needs more than the config.
        ValueError: if a run has no response, no checkpoint, or not the columns of `SelfTuner.sensitivity`.
        FileNotFoundError: if a folder holds no finished experiment.
    """
    found = [response_of(run, examples) for run in read(runs, space)]
    return draw_sensitivity([run for run, _ in found], [table for _, table in found])
