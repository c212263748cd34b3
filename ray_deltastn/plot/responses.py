"""What the response of a run says, computed again from its tuner or from the checkpoint of its best trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ray_deltastn.plot.sources import TRIAL, Run, about_space
from ray_deltastn.training.saved import state_of
from ray_deltastn.training.sensitivity import COLUMNS
from ray_deltastn.training.tuner import SelfTuner


def response_of(run: Run, examples: int | None = None) -> tuple[Run, pd.DataFrame]:
    """The table of `SelfTuner.sensitivity` of a run, or of the best trial of a search.

    The run that is returned with it has the hyperparameters of the tuner.

    Args:
        run: the run.
        examples: number of validation examples, the first ones; None means all.

    Raises:
        ValueError: if the run has no response or no checkpoint, or is a table without the columns.
        TypeError: if the task needs more than the trial's config to be built.
    """
    if isinstance(run.source, pd.DataFrame):
        run.require(*COLUMNS)
        return run, run.reports
    tuner = run.source if isinstance(run.source, SelfTuner) else _best_tuner(run)
    return replace(run, space=about_space(tuner.space)), tuner.sensitivity(examples)


def _best_tuner(run: Run) -> SelfTuner:
    from ray_deltastn.tune import finished, repeats  # the other pictures need no Ray

    trial = run.best_trial()
    if isinstance(run.source, Path):
        return finished.FinishedTrial(run.source, trial).tuner()
    result = _result(run.source, trial)
    return finished.tuner_at(repeats.with_own_seed(result.config), state_of(result))


def _result(source: Any, trial: str) -> Any:
    """The part of what Ray Tune returns that belongs to a trial; it has `config` and `checkpoint`."""
    if hasattr(source, "metrics_dataframe"):
        return source
    if hasattr(source, "trial_dataframes"):
        return next(one for one in source.trials if one.trial_id == trial)
    return next(one for one in source if one.metrics and one.metrics[TRIAL] == trial)
