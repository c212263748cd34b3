"""Run an experiment from its configuration, or resume an interrupted one without restarting its trials."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune
from ray.tune import Callback

from ray_deltastn.training import random_state
from ray_deltastn.training.files import write_whole
from ray_deltastn.tune import cluster
from ray_deltastn.tune.config import ExperimentConfig, option_of
from ray_deltastn.tune.finished import write_best
from ray_deltastn.tune.folder.code import write_code
from ray_deltastn.tune.folder.layout import (
    CONFIG_FILE,
    DRIVER_FILE,
    IDENTITY_FILE,
    LINEAGE_FILE,
    LOG_FILE,
    SPACE_FILE,
    STATES_FOLDER,
    TRIALS_FOLDER,
    ResumeError,
    TrialsFailedError,
)
from ray_deltastn.tune.folder.log import last_of_each, read_log
from ray_deltastn.tune.folder.loggers import loggers
from ray_deltastn.tune.folder.pruning import PruneCheckpoints
from ray_deltastn.tune.folder.report_log import ReportLog
from ray_deltastn.tune.folder.results import collect, write_results
from ray_deltastn.tune.folder.states import KeepStates, is_written, mend
from ray_deltastn.tune.guards import (
    alone,
    check_free,
    check_identity,
    check_maps,
    check_owner,
    check_resumable,
    check_saved,
    check_shared,
    make_free,
    slots_of,
)
from ray_deltastn.tune.population import lineage
from ray_deltastn.tune.progress import Progress
from ray_deltastn.tune.scheduler_names import PAUSING
from ray_deltastn.tune.schedulers import EpochBudget, make_scheduler
from ray_deltastn.tune.search.searchers import make_searcher
from ray_deltastn.tune.stopping import Terminated, terminable
from ray_deltastn.tune.task_check import Checked, check_task
from ray_deltastn.tune.trainable import NO_ROOM, DeltaSTNTrainable


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
        self._failed: list[str] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that ended (called by Tune)."""
        self.trials.add(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that failed and is not restarted (called by Tune)."""
        self.trials.add(trial.trial_id)
        self._failed.append(trial.trial_id)

    def place_of(self, trial: Any) -> int:
        """Place of a trial among those that failed; a trial that failed before the experiment was resumed is last."""
        return self._failed.index(trial.trial_id) if trial.trial_id in self._failed else len(self._failed)


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
        TrialsFailedError: if every trial fails. The experiment can be resumed: then each trial is tried again.
        Terminated: after SIGTERM. Like KeyboardInterrupt after Ctrl-C, it is raised when the state is saved.
    """
    out = out.resolve()  # Tune's file layer (Arrow) refuses relative paths.
    if resume and not (out / CONFIG_FILE).exists():
        raise ResumeError(f"`{out}` must hold an experiment to resume, got none")
    if resume and not trust:
        check_owner(out)
    if not resume:
        check_free(out)
    # Build the task here first: a mistake gives a one-line error instead of a worker's traceback.
    checked = check_task(config)
    if resume:
        check_saved(checked.config, out)
        check_maps(out, checked.space)
        check_identity(out, checked.identity)
    with terminable() as rearm:
        try:
            cluster.start(address, config.task, code)
        except SystemExit:  # Ray's own handler of SIGTERM
            raise Terminated from None
        rearm()
        return _run_on_cluster(checked, out, resume, code)


def _run_on_cluster(checked: Checked, out: Path, resume: bool, code: Sequence[Path]) -> pd.DataFrame:
    config = checked.config
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
    scheduler = make_scheduler(
        config.tune.scheduler, config.param_space(), reports=checked.reports, grace=checked.grace
    )
    if not resume:
        make_free(out)
    out.mkdir(parents=True, exist_ok=True)
    check_shared(out)
    with alone(out):
        if code:
            write_code(out, code)
        return _run(checked, searcher, scheduler, alive, out, resume)


def _run(checked: Checked, searcher: Any, scheduler: Any, alive: int, out: Path, resume: bool) -> pd.DataFrame:
    config = checked.config
    progress = Progress([option_of(name) for name in config.search], config.tune.num_samples)
    if resume and mend(out / TRIALS_FOLDER, out / STATES_FOLDER):
        progress.say("Tune's newest state was damaged; continuing from the previous one")
    known = check_resumable(config, out) if resume else {}
    ended = _Ended([name for name, status in known.items() if status == "TERMINATED"])
    if not resume:
        shutil.rmtree(out / STATES_FOLDER, ignore_errors=True)
        for name in (DRIVER_FILE, LOG_FILE, LINEAGE_FILE, IDENTITY_FILE):
            (out / name).unlink(missing_ok=True)
        write_whole(out / SPACE_FILE, json.dumps(checked.space, indent=2) + "\n")
        if checked.identity:
            write_whole(out / IDENTITY_FILE, json.dumps(checked.identity) + "\n")
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
    failed = [trial for trial in analysis.trials if trial.status == "ERROR"]
    if not is_written(out / TRIALS_FOLDER) or any(map(lacked_room, analysis.trials)):
        # The experiment can be resumed once the disk has free space, so it must not count as ended.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
    if failed:
        first = min(failed, key=ended.place_of)
        where = out / TRIALS_FOLDER / first.trial_id / "error.txt"
        if len(failed) == len(analysis.trials):
            raise TrialsFailedError(f"all {len(failed)} trials failed, the first with {reason_of(first)}; see {where}")
        progress.say(f"{len(failed)} of {len(analysis.trials)} trials failed; the error of the first is in {where}")
    log = out / TRIALS_FOLDER / "pbt_global.txt"
    if log.exists():
        lineage(log, analysis.trials, read_log(out)).to_csv(out / LINEAGE_FILE, index=False)
    results = collect(out, {trial.trial_id for trial in analysis.trials})
    told = write_best(out, results, config.tune.metric, config.tune.mode)
    if told:
        progress.console.print(told, highlight=False, markup=False)
    write_results(results, out)
    return results


def reason_of(trial: Any) -> str:
    """The error of a failed trial on one line: its type and its message."""
    error = trial.get_pickled_error()
    cause = getattr(error, "cause", None)  # of an error that a worker has raised
    if cause is not None:
        return " ".join(f"{type(cause).__name__}: {cause}".split())
    # A worker that died has raised nothing. Tune's text holds all failures of the trial.
    text = str(error or trial.get_error()).rpartition("Failure #")[2]
    lines = text.strip().splitlines() or ["no message"]
    # The error of `setup` is the last line of the text about the actor.
    at_end = error is None or getattr(error, "actor_init_failed", False)
    return " ".join(lines[-1 if at_end else 0].split())


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
