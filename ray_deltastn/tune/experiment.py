"""Run an experiment from its configuration, or resume an interrupted one without restarting its trials."""

from __future__ import annotations

import difflib
import errno
import itertools
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ray import tune
from ray.tune import Callback

from ray_deltastn.domains import DomainsName
from ray_deltastn.methods import get_method
from ray_deltastn.task import Task
from ray_deltastn.tasks import build_task
from ray_deltastn.tasks.options import Watched
from ray_deltastn.training import random_state
from ray_deltastn.training.checks import check_differentiable
from ray_deltastn.training.data import stream
from ray_deltastn.training.files import write_whole
from ray_deltastn.training.settings import Settings
from ray_deltastn.tune import cluster
from ray_deltastn.tune.config import ExperimentConfig, option_of, unknown_key
from ray_deltastn.tune.finished import write_best
from ray_deltastn.tune.folder.code import write_code
from ray_deltastn.tune.folder.layout import (
    CONFIG_FILE,
    DRIVER_FILE,
    LINEAGE_FILE,
    LOG_FILE,
    SPACE_FILE,
    STATES_FOLDER,
    TRIALS_FOLDER,
    ResumeError,
)
from ray_deltastn.tune.folder.log import ReportLog, last_of_each, read_log
from ray_deltastn.tune.folder.loggers import loggers
from ray_deltastn.tune.folder.pruning import PruneCheckpoints
from ray_deltastn.tune.folder.results import collect, write_results
from ray_deltastn.tune.folder.states import KeepStates, is_written, mend
from ray_deltastn.tune.guards import alone, check_free, check_maps, check_owner, check_resumable, check_shared, slots_of
from ray_deltastn.tune.population import lineage
from ray_deltastn.tune.progress import Progress
from ray_deltastn.tune.schedulers import PAUSING, EpochBudget, make_scheduler
from ray_deltastn.tune.search.searchers import make_searcher
from ray_deltastn.tune.trainable import NO_ROOM, DeltaSTNTrainable

#: Hyper steps after which a scheduler may judge a trial.
HYPER_STEPS = 10


class _AllTrialsRestored(Callback):
    """Stops a resumed experiment if Tune has lost trials; Tune would start new ones instead."""

    def __init__(self, known: Collection[str]) -> None:
        self.known = set(known)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        lost = self.known - {trial.trial_id for trial in trials}
        if lost:
            raise ResumeError(
                f"`trials` must all be restored, got {len(lost)} of {len(self.known)} missing, such as {min(lost)!r}"
            )


class _Ended(Callback):
    """Records the trials that have ended: finished, stopped by the scheduler, or failed.

    Args:
        before: ids of the trials that had ended before the experiment was resumed.
    """

    def __init__(self, before: Collection[str]) -> None:
        self.trials = set(before)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that ended (called by Tune)."""
        self.trials.add(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that failed and is not restarted (called by Tune)."""
        self.trials.add(trial.trial_id)


def run_experiment(
    config: ExperimentConfig,
    out: Path,
    resume: bool = False,
    trust: bool = False,
    address: str | None = None,
    code: Sequence[Path] = (),
) -> pd.DataFrame:
    """Run all trials and write the reports to `results.csv` and `results.parquet`.

    Args:
        config: the experiment.
        out: results folder; it is created if missing.
        resume: continue the experiment in `out`. Tune unpickles its states there, which can run any code. The
            package's own states are read as data only.
        trust: resume even if the folder belongs to another user.
        address: address of a running Ray cluster. By default it is `$RAY_ADDRESS`; if that is not set, Ray starts on
            this machine.
        code: folders on `sys.path` that may hold the task's module; workers find it too, see `cluster.start`.

    Returns:
        One row per report of every trial.

    Raises:
        ResumeError: if `resume` is set and `out` holds no experiment to continue, or one with another configuration;
            or if `resume` is not set and `out` holds an unfinished experiment.
        ValueError: if the task or an option breaks a rule, or a machine of the cluster cannot access `out`. It is
            raised before any trial starts.
        ConnectionError: if no cluster answers at the address.
    """
    out = out.resolve()  # Tune's file layer (Arrow) refuses relative paths.
    if resume and not (out / CONFIG_FILE).exists():
        raise ResumeError(f"`{out}` must hold an experiment to resume, got none")
    if resume and not trust:
        check_owner(out)
    # Build the task here first: a mistake gives a one-line error instead of a worker's traceback.
    space, config, reports, grace = check_task(config)
    cluster.start(address, config.task, code)
    fitting = slots_of(config)
    slots = config.tune.max_concurrent or fitting
    pausing = config.tune.scheduler in PAUSING
    alive = config.tune.num_samples if pausing else slots
    searcher = make_searcher(
        config.tune.searcher,
        config.param_space(),
        num_samples=config.tune.num_samples,
        seed=config.tune.seed,
        warm_start=config.tune.warm_start,
        max_concurrent=alive,
    )
    scheduler = make_scheduler(config.tune.scheduler, config.param_space(), reports=reports, grace=grace)
    if not resume:
        check_free(out)
    out.mkdir(parents=True, exist_ok=True)
    check_shared(out)
    with alone(out):
        if code:
            write_code(out, code)
        return _run(config, space, searcher, scheduler, alive, out, resume)


def _run(
    config: ExperimentConfig,
    space: dict[str, dict[str, Any]],
    searcher: Any,
    scheduler: Any,
    alive: int,
    out: Path,
    resume: bool,
) -> pd.DataFrame:
    progress = Progress([option_of(name) for name in config.search], config.tune.num_samples)
    if resume and mend(out / TRIALS_FOLDER, out / STATES_FOLDER):
        progress.console.print("Tune's newest state was damaged; continuing from the previous one", highlight=False)
    known = check_resumable(config, out) if resume else {}
    if resume:
        check_maps(out, space)
    ended = _Ended([name for name, status in known.items() if status == "TERMINATED"])
    if not resume:
        shutil.rmtree(out / STATES_FOLDER, ignore_errors=True)
        for name in (DRIVER_FILE, LOG_FILE, LINEAGE_FILE):
            (out / name).unlink(missing_ok=True)
        write_whole(out / SPACE_FILE, json.dumps(space, indent=2) + "\n")
        write_whole(out / CONFIG_FILE, json.dumps(config.model_dump(), indent=2) + "\n")
    # TensorBoard's writer logs a warning for every NaN or infinite value of a diverged trial.
    logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
    budget = EpochBudget(config.tune.budget, _epochs_so_far(out, known)) if config.tune.budget else None
    started = time.monotonic()
    try:
        # Population-based training draws from the global generators.
        with random_state.isolated(config.tune.seed):
            analysis = tune.run(
                DeltaSTNTrainable,
                name=TRIALS_FOLDER,
                storage_path=str(out),
                metric=config.tune.metric,
                mode=config.tune.mode,
                config=config.param_space(),
                num_samples=config.tune.num_samples,
                search_alg=searcher,
                scheduler=scheduler,
                stop=budget,
                max_concurrent_trials=alive,
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_frequency=config.tune.checkpoint_every, checkpoint_at_end=True
                ),
                max_failures=config.tune.max_failures,
                raise_on_failed_trial=False,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
                callbacks=[
                    progress,
                    ReportLog(out),
                    *loggers(),
                    KeepStates(out / TRIALS_FOLDER, out / STATES_FOLDER),
                    PruneCheckpoints(out / STATES_FOLDER, keep=4 if config.tune.scheduler in PAUSING else 2),
                    ended,
                    *([_AllTrialsRestored(known)] if resume else []),
                ],
                resume="AUTO+ERRORED" if resume else False,
                verbose=0,
            )
    except tune.TuneError as error:
        # Tune wraps an error of a callback in a TuneError. Raise the original.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
    finally:
        progress.close()
        _note_driver(out / DRIVER_FILE, searcher.seconds, time.monotonic() - started)
    if len(ended.trials) < config.tune.num_samples and not (budget and budget.stop_all()):
        # Tune returns normally after an interrupt and marks all trials as terminated.
        raise KeyboardInterrupt
    failed = [trial.trial_id for trial in analysis.trials if trial.status == "ERROR"]
    if not is_written(out / TRIALS_FOLDER) or any(map(lacked_room, analysis.trials)):
        # The experiment can be resumed once the disk has free space, so it must not count as ended.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
    if failed:
        where = out / TRIALS_FOLDER / failed[0] / "error.txt"
        progress.console.print(
            f"{len(failed)} of {len(analysis.trials)} trials failed; the error of the first is in {where}",
            highlight=False,
        )
    log = out / TRIALS_FOLDER / "pbt_global.txt"
    if log.exists():
        lineage(log, analysis.trials, read_log(out)).to_csv(out / LINEAGE_FILE, index=False)
    results = collect(out, {trial.trial_id for trial in analysis.trials})
    told = write_best(out, results, config.tune.metric, config.tune.mode)
    if told:
        progress.console.print(told, highlight=False, markup=False)
    write_results(results, out)
    return results


def lacked_room(trial: Any) -> bool:
    """Whether a trial failed because its checkpoint could not be written."""
    # Tune's text holds all failures of the trial. Only the last one counts.
    error = str(trial.get_error()).rpartition("Failure #")[2] if trial.status == "ERROR" else ""
    return os.strerror(errno.ENOSPC) in error or NO_ROOM in error


def _epochs_so_far(out: Path, known: Collection[str]) -> dict[str, int]:
    """Epochs trained so far, by trial id; trials that Tune has lost are left out, because they start again."""
    logged = read_log(out).items()
    return {name: int(last_of_each(reports)[-1].result["epoch"]) for name, reports in logged if name in known}


def _note_driver(path: Path, searcher: float, wall: float) -> None:
    """Add this run's seconds, of the searcher and in total, to those of earlier runs of the same experiment."""
    before = json.loads(path.read_text()) if path.exists() else {}
    spent = {"searcher_seconds": searcher, "wall_seconds": wall}
    total = {key: round(before.get(key, 0.0) + value, 3) for key, value in spent.items()}
    write_whole(path, json.dumps(total) + "\n")


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


def check_task(config: ExperimentConfig) -> tuple[dict[str, dict[str, Any]], ExperimentConfig, int, int]:
    """Build the task once, as a trial does, and check the experiment against it.

    Returns:
        Four values: kind, map, initial value and bounds of each hyperparameter, by name (the map is that of the first
        value if `preset` or `domains` is searched); the experiment, in which `hyperparameters: all` is replaced by the
        name and range of each hyperparameter; the largest number of reports of one trial; and the number of reports
        before which a scheduler must not judge a trial.

    Raises:
        ValueError: if the task breaks a rule, an option is probably misspelt, a hyperparameter is searched outside its
            domain, or the task never reports the metric.
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
    for name in (*config.options, *searched):
        # A task may read an option later or not at all, so only a name that looks misspelt is refused.
        near = difflib.get_close_matches(name, sorted(watched.read), n=1, cutoff=0.75)
        if name not in watched.read and near:
            raise ValueError(unknown_key(f"options.{name}", [f"options.{near[0]}"]))
    splits = ["valid"] + ([] if task.test is None else ["test"])
    known = [f"{split}_{what}" for split in splits for what in ("loss", "accuracy", *task.metrics)]
    if config.tune.metric not in (*known, "best_valid_loss", "train_loss"):
        raise ValueError(unknown_key(f"tune.metric={config.tune.metric}", ["best_valid_loss", *known, "train_loss"]))
    about = {
        name: {
            "kind": type(p).__name__,
            "map": p.map_in(sets[0]).name,
            "initial": p.initial,
            "low": p.bounds[0],
            "high": p.bounds[1],
        }
        for name, p in task.space.hyperparameters.items()
    }
    if "hyperparameters" in config.search:
        config = config.with_ranges(task.space.search_ranges())
    constants = {name.partition(".")[2]: name for name in config.search if name.startswith("hyperparameters.")}
    task.space.require(constants, "`search.hyperparameters`")
    for name, key in constants.items():
        for value in config.extremes(key):
            task.space.hyperparameters[name].check_value(name, value)
    reports = _reports(config, task)
    return about, config, reports, _grace(config, task, reports)
