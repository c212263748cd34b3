"""What a finished trial has left: its config, its schedule, and its network and response in the newest checkpoint."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pyarrow import fs

from ray_deltastn.methods import get_method
from ray_deltastn.task import Task
from ray_deltastn.tasks import build_task
from ray_deltastn.training import random_state
from ray_deltastn.training.files import write_whole, written_whole
from ray_deltastn.training.in_force import up_to
from ray_deltastn.training.saved import MODEL_FILE, SCHEDULE_FILE, load_weights, schedule_of
from ray_deltastn.training.schedule import replayed
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.tables import ranked
from ray_deltastn.training.tuner import SelfTuner
from ray_deltastn.training.warned import RunWarning
from ray_deltastn.tune.folder.layout import TRIALS_FOLDER
from ray_deltastn.tune.folder.log import last_of_each, read_log
from ray_deltastn.tune.folder.own_states import newest_own
from ray_deltastn.tune.repeats import with_own_seed

#: Options of a trial that a refit does not take over.
_LEFT = ("method", "hyperparameters", "patience", "min_lr", "epochs")


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
        reports = last_of_each(log[trial])
        self.config: dict[str, Any] = with_own_seed(reports[-1].config)
        self._reports = reports
        self.state = _newest_state(folder / TRIALS_FOLDER, trial)

    @property
    def tunes(self) -> bool:
        """Whether the trial tuned its hyperparameters itself."""
        return get_method(self.config.get("method", "delta-stn")).tunes

    @property
    def options(self) -> dict[str, Any]:
        """Options of the trial, see `Settings`."""
        return _options(self.config)

    @property
    def refit_options(self) -> dict[str, Any]:
        """Options of the trial that `rd.refit` takes over.

        Instead of a `plateau`, which needs validation data, the learning rate falls after the same epochs.
        """
        options = {name: value for name, value in self.options.items() if name not in _LEFT}
        # A share of the rate that the trial was given at that time: a population changes this rate.
        given = Settings(**self.options).lr
        shares = {int(one.result["epoch"]): one.result["lr"] / one.config.get("lr", given) for one in self._reports}
        return {**options, "schedule": replayed(options.get("schedule"), {0: 1.0, **shares})}

    def build(self) -> Task:
        """The trial's task, with the initial weights of the trial."""
        return _built(self.config)

    def tuner(self) -> SelfTuner:
        """The trial's tuner, as it was at its newest checkpoint, on the CPU if the trial's device is not here."""
        return tuner_at(self.config, self.state)

    def schedule(self, best_epoch: int) -> pd.DataFrame:
        """Hyperparameters in force during each epoch, up to the epoch of the trial's best report.

        Args:
            best_epoch: that epoch.
        """
        return up_to(schedule_of(self.state), best_epoch)


def tuner_at(config: Mapping[str, Any], state: Mapping[str, Any]) -> SelfTuner:
    """The tuner of a trial, as it was at one of its states, on the CPU if the trial's device is not here.

    Args:
        config: the trial's config.
        state: what one of its checkpoints holds.

    Raises:
        ValueError: if the state is not one of this task.
        TypeError: if the task needs more than the config to be built.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)  # the trial has given them
        tuner = SelfTuner(_built(config), **{**_options(config), "device": "auto"})
    tuner.load_state_dict(state)
    return tuner


def _built(config: Mapping[str, Any]) -> Task:
    with random_state.isolated(Settings(**_options(config)).seed):
        return build_task(config)


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in Settings.names() if name in config}


def _newest_state(trials: Path, trial: str) -> dict[str, Any]:
    found = newest_own(fs.LocalFileSystem(), str(trials.resolve() / trial), trial).state
    if found is None or "best" not in found:
        raise ValueError(f"`{trials}` must have a readable checkpoint of trial {trial!r}, got none")
    return found


def write_best(folder: Path, results: pd.DataFrame, metric: str, mode: str) -> str:
    """Write the network and the schedule of the best trial into the results folder.

    Args:
        folder: results folder.
        results: the reports of all trials.
        metric: number that decides.
        mode: `min` or `max`.

    Returns:
        A sentence if there is no network, or if its number is not the one that the results show; else nothing.
    """
    for name in (MODEL_FILE, SCHEDULE_FILE):
        (folder / name).unlink(missing_ok=True)
    best = ranked(results, metric, mode).iloc[0]
    shown = metric.removeprefix("best_")
    try:
        state = _newest_state(folder / TRIALS_FOLDER, str(best["trial_id"]))
        weights = load_weights(state)
    except ValueError as error:
        return f"No network of the best trial was kept: {error}"
    with written_whole(folder / MODEL_FILE) as draft:
        torch.save(weights, draft)
    write_whole(folder / SCHEDULE_FILE, json.dumps(schedule_of(state).to_dict("list")) + "\n")
    kept = state["best"]["report"].get(shown)
    # A trial that population-based training copied onto has lost its own earlier network.
    if kept != best[shown]:
        return f"`{MODEL_FILE}` is the network with `{shown}` {kept:.4f}; that with {best[shown]:.4f} was not kept."
    return ""
