"""Train the network of a finished trial again, with the schedule or the constants that the trial has found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ray_deltastn.methods import get_method
from ray_deltastn.task import Task
from ray_deltastn.tasks import build_task
from ray_deltastn.training import random_state
from ray_deltastn.training.refit import Use, refit
from ray_deltastn.training.settings import Settings
from ray_deltastn.tune.folder.layout import CHECKPOINT, STATE_FILE, TRIALS_FOLDER
from ray_deltastn.tune.folder.log import last_of_each, read_log

#: Folder of the refitted networks in the results folder.
REFIT_FOLDER = "refit"
#: Options of a trial that a refit does not take over.
_LEFT = ("method", "hyperparameters", "patience", "epochs")


@dataclass(frozen=True)
class Found:
    """What a trial has found.

    Attributes:
        config: config of the trial.
        schedule: hyperparameters in force during each epoch. For constants it ends at the epoch of the best report.
    """

    config: Mapping[str, Any]
    schedule: pd.DataFrame

    def build(self) -> Task:
        """The trial's task, with the initial weights of the trial."""
        with random_state.isolated(Settings(**self.options).seed):
            return build_task(self.config)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the trial that a refit takes over."""
        return {name: self.config[name] for name in Settings.names() if name in self.config and name not in _LEFT}


def found_by(folder: Path, trial: str, best_epoch: int) -> Found:
    """Read the config of a trial from the log, and its schedule from its newest checkpoint.

    Args:
        folder: results folder.
        trial: id of the trial.
        best_epoch: epoch of the trial's best report, at which the training with constants stops.

    Raises:
        ValueError: if the experiment has no such trial, or the trial has no checkpoint that can be read.
    """
    log = read_log(folder)
    if trial not in log:
        raise ValueError(f"`trial` must be one of {', '.join(sorted(log))}, got {trial!r}")
    config = last_of_each(log[trial])[-1].config
    state = _newest_state(folder / TRIALS_FOLDER, trial)
    names = [
        name for name, _ in sorted(state["identity"]["space"].items(), key=lambda item: int(item[1].split(":")[0]))
    ]
    rows = state["in_force"]["rows"]
    table = pd.DataFrame(rows.numpy(), columns=names, index=pd.RangeIndex(1, len(rows) + 1, name="epoch"))
    tunes = get_method(config.get("method", "delta-stn")).tunes
    return Found(config, table if tunes else table.head(best_epoch))


def _newest_state(trials: Path, trial: str) -> dict[str, Any]:
    newest: dict[str, Any] = {}
    for path in trials.glob(f"*/{CHECKPOINT}*/{STATE_FILE}"):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # torch.load raises many kinds of exception for a damaged file
            continue
        if state.get("trial_id") == trial and state["iteration"] > newest.get("iteration", 0):
            newest = state
    if "in_force" not in newest:
        raise ValueError(f"`{trials}` must have a readable checkpoint of trial {trial!r} with a schedule, got none")
    return newest


def refit_trial(found: Found, use: Use, folder: Path, on_report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train the network of a trial again on training and validation data; the same call continues a stopped run.

    Args:
        found: what the trial has found.
        use: `schedule` or `final`, see `rd.refit`.
        folder: folder for the network and the schedule.
        on_report: called with each report.

    Returns:
        The last report.

    Raises:
        ValueError: see `rd.refit`.
    """
    last: dict[str, Any] = {}

    def note(report: dict[str, Any]) -> None:
        last.update(report)
        on_report(report)

    refit(found.build(), found.schedule, use=use, folder=folder, on_report=note, **found.options)
    return last
