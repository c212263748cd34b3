"""Check of an experiment against its task, before any trial starts: a mistake gives one line instead of a traceback."""

from __future__ import annotations

import difflib
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch

from ray_deltastn.domains import DomainsName
from ray_deltastn.methods import get_method
from ray_deltastn.task import Task
from ray_deltastn.tasks import build_task
from ray_deltastn.tasks.options import Watched
from ray_deltastn.tasks.ready import READY
from ray_deltastn.training import random_state
from ray_deltastn.training.checks import check_differentiable, try_out_task
from ray_deltastn.training.data import stream
from ray_deltastn.training.settings import Settings
from ray_deltastn.tune.config import ExperimentConfig, option_of, unknown_key

#: Hyper steps after which a scheduler may judge a trial.
HYPER_STEPS = 10


@dataclass(frozen=True)
class Checked:
    """An experiment whose task has been built and fits it.

    Attributes:
        space: kind, map, initial value and bounds of each hyperparameter, by name. The map is that of the first value
            if `preset` or `domains` is searched.
        config: the experiment, in which `hyperparameters: all` is replaced by the names and ranges of the task's.
        reports: the largest number of reports of one trial.
        grace: number of reports before which a scheduler must not judge a trial.
        identity: what `Task.identity` says.
    """

    space: dict[str, dict[str, Any]]
    config: ExperimentConfig
    reports: int
    grace: int
    identity: dict[str, str]


def _reports(config: ExperimentConfig, task: Task) -> int:
    """Return the number of reports of a whole trial; of the longest trial, if trials differ."""
    epochs = int(max(config.extremes("epochs")))
    intervals = config.extremes("steps_per_report")
    if all(interval is None for interval in intervals):
        return epochs
    batch_size = int(min(config.extremes("batch_size")))
    steps = epochs * len(stream(task.train, batch_size, "train", torch.device("cpu"), 0, task.pair))
    return max(epochs if interval is None else math.ceil(steps / interval) for interval in intervals)


def _grace(config: ExperimentConfig, task: Task, reports: int) -> int:
    """Return the number of reports until λ has made some hyper steps in every trial; 1 if no trial tunes λ."""
    shaping = ("method", "preset", "epochs", "batch_size", "warmup", "warmup_steps", "train_interval", "valid_interval")
    searched = [name for name in (*shaping, "steps_per_report") if name in config.search]
    found = 1
    for values in itertools.product(*map(config.extremes, searched)):
        settings = Settings(**{**config.train, **dict(zip(searched, values, strict=True))})
        if get_method(settings.method).tunes:
            epoch = len(stream(task.train, settings.batch_size, "train", torch.device("cpu"), 0, task.pair))
            cycles = math.ceil(HYPER_STEPS / settings.valid_interval)
            steps = settings.warmup_train_steps(epoch) + cycles * settings.train_interval
            found = max(found, math.ceil(steps / (settings.steps_per_report or epoch)))
    return min(found, reports)


def _sets_of_maps(config: ExperimentConfig) -> list[DomainsName]:
    """Return the sets of maps that trials of this experiment can have."""
    searched = [name for name in ("preset", "domains") if name in config.search]
    values = itertools.product(*map(config.extremes, searched))
    given = [{**config.train, **dict(zip(searched, one, strict=True))} for one in values]
    return list(dict.fromkeys(Settings(**one).domains for one in given))


def check_task(config: ExperimentConfig) -> Checked:
    """Build the task once, as a trial does, and check the experiment against it.

    Raises:
        ValueError: if the task breaks a rule, an option is probably misspelt, a hyperparameter is searched outside its
            domain, data, model and loss do not fit together, or the task never reports the metric.
    """
    searched = [option_of(name) for name in config.search if name.startswith("options.")]
    watched = Watched({"task": config.task, **config.options, **config.train})
    with random_state.isolated(0):
        task = build_task(watched)
    sets = _sets_of_maps(config)
    for domains in sets:
        task.space.use(domains)
    for method in config.methods():
        check_differentiable(task, get_method(method))
    known = sorted(watched.read - {"task", *Settings.names()})
    for name in (*config.options, *searched):
        if name in watched.read:
            continue
        # A task of the user may read an option later or not at all, so only a name that looks misspelt is refused.
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        if near:
            raise ValueError(unknown_key(f"options.{name}", [f"options.{near[0]}"]))
        if config.task in READY:
            raise ValueError(f"`options.{name}` is not an option of {config.task}; known are {', '.join(known)}")
    splits = ["valid"] + ([] if task.test is None else ["test"])
    reported = [f"{split}_{what}" for split in splits for what in ("loss", "accuracy", *task.metrics)]
    if config.tune.metric not in (*reported, "best_valid_loss", "train_loss"):
        raise ValueError(unknown_key(f"tune.metric={config.tune.metric}", ["best_valid_loss", *reported, "train_loss"]))
    about = {name: p.about(sets[0]) for name, p in task.space.hyperparameters.items()}
    if "hyperparameters" in config.search:
        config = config.with_ranges(task.space.search_ranges())
    constants = {name.partition(".")[2]: name for name in config.search if name.startswith("hyperparameters.")}
    task.space.require(constants, "`search.hyperparameters`")
    for name, key in constants.items():
        for value in config.extremes(key):
            task.space.hyperparameters[name].check_value(name, value)
    task.space.fixed_values(config.train.get("hyperparameters", {}))
    if config.tune.gpu == 0 and config.train.get("device", "auto") in ("auto", "cpu"):
        # Parts of a task may need a GPU, which this machine may not have.
        with random_state.isolated(0):
            try_out_task(task)
    reports = _reports(config, task)
    return Checked(about, config, reports, _grace(config, task, reports), dict(task.identity))
