"""What a finished trial has left: its config, its schedule, and its network and response in the newest checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ray_deltastn.methods import get_method
from ray_deltastn.task import Task
from ray_deltastn.tasks import build_task
from ray_deltastn.training import random_state
from ray_deltastn.training.health import RunWarning
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.tuner import SelfTuner
from ray_deltastn.tune.folder.layout import CHECKPOINT, STATE_FILE, TRIALS_FOLDER
from ray_deltastn.tune.folder.log import last_of_each, read_log
from ray_deltastn.tune.repeats import with_own_seed

#: Options of a trial that a refit does not take over.
_LEFT = ("method", "hyperparameters", "patience", "epochs")


class FinishedTrial:
    """A trial of an experiment, read from the results folder.

    Args:
        folder: results folder.
        trial: id of the trial.

    Attributes:
        config: the trial's last config.
        state: state of its newest checkpoint that can be read.

    Raises:
        ValueError: if the experiment has no such trial, or the trial has no checkpoint that can be read.
    """

    def __init__(self, folder: Path, trial: str) -> None:
        log = read_log(folder)
        if trial not in log:
            raise ValueError(f"`trial` must be one of {', '.join(sorted(log))}, got {trial!r}")
        self.config: dict[str, Any] = with_own_seed(last_of_each(log[trial])[-1].config)
        self.state = _newest_state(folder / TRIALS_FOLDER, trial)

    @property
    def tunes(self) -> bool:
        """Whether the trial tuned its hyperparameters itself."""
        return get_method(self.config.get("method", "delta-stn")).tunes

    @property
    def options(self) -> dict[str, Any]:
        """Options of the trial, see `Settings`."""
        return {name: self.config[name] for name in Settings.names() if name in self.config}

    @property
    def refit_options(self) -> dict[str, Any]:
        """Options of the trial that `rd.refit` takes over."""
        return {name: value for name, value in self.options.items() if name not in _LEFT}

    def build(self) -> Task:
        """The trial's task, with the initial weights of the trial."""
        with random_state.isolated(Settings(**self.options).seed):
            return build_task(self.config)

    def tuner(self) -> SelfTuner:
        """The trial's tuner, as it was at its newest checkpoint, on the CPU if the trial's device is not here."""
        options = {**self.options, "device": "auto"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunWarning)  # the trial has given them
            tuner = SelfTuner(self.build(), **options)
        tuner.load_state_dict(self.state)
        return tuner

    def schedule(self, best_epoch: int) -> pd.DataFrame:
        """Hyperparameters in force during each epoch; of constants, up to the epoch of the trial's best report.

        Args:
            best_epoch: that epoch.
        """
        order = {name: int(text.partition(":")[0]) for name, text in self.state["identity"]["space"].items()}
        rows = self.state["in_force"]["rows"].numpy(force=True)
        index = pd.RangeIndex(1, len(rows) + 1, name="epoch")
        table: pd.DataFrame = pd.DataFrame(rows, columns=sorted(order, key=order.__getitem__), index=index)
        used: pd.DataFrame = table if self.tunes else table.head(best_epoch)
        return used


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
