"""Checks before an experiment starts or resumes: its folder, its saved states, and the cluster."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.folder.layout import (
    COMPARISON_FILE,
    CONFIG_FILE,
    DRIVER_FILE,
    IDENTITY_FILE,
    LINEAGE_FILE,
    LOCK_FILE,
    LOG_FILE,
    RESULTS_FILE,
    SPACE_FILE,
    STATES_FOLDER,
    TRIALS_FOLDER,
    ResumeError,
    state_files,
)
from ray_deltastn.tune.folder.states import trial_statuses
from ray_deltastn.tune.nested import flat

logger = logging.getLogger(__name__)

#: Attempts to ask a machine whether it sees the results folder, and seconds to wait for each answer.
ATTEMPTS, ANSWER_SECONDS = 5, 60.0


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Lock a results folder against other commands; the lock of a killed command is released.

    Raises:
        ResumeError: if another command holds the lock.
    """
    lock = FileLock(out / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ResumeError(f"`{out}` must not be in use by another command, got a command that is running") from None
    try:
        yield
    finally:
        lock.release()


def is_experiment(out: Path) -> bool:
    """Whether a folder holds an experiment of this package; many programs write a `config.json`."""
    try:
        config = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"task", "tune", "search"} <= config.keys()


def unfinished(out: Path) -> bool:
    """Whether a results folder holds an experiment that has started and not ended."""
    return is_experiment(out) and not (out / RESULTS_FILE).exists()


def check_free(out: Path) -> None:
    """Check that a new experiment can use a results folder; a finished experiment does not prevent it.

    Raises:
        ResumeError: if the folder holds an unfinished experiment, a comparison or other files.
    """
    if (out / COMPARISON_FILE).exists():
        raise ResumeError(f"`{out}` must not hold a comparison, got a {COMPARISON_FILE}; choose another folder")
    if unfinished(out):
        raise ResumeError(
            f"`{out}` must not hold an unfinished experiment; continue it with --resume, or remove the folder"
        )
    if not is_experiment(out):
        check_own(out)


def make_free(out: Path) -> None:
    """Rename the results folder of a finished experiment, so that a new one can use its name.

    Raises:
        ResumeError: see `check_free`.
    """
    check_free(out)
    if is_experiment(out):
        number = 1
        while (kept := out.with_name(f"{out.name}.{number}")).exists():
            number += 1
        out.rename(kept)


def check_own(out: Path) -> None:
    """Check that a folder for new results has no files of anybody else.

    Files that a command leaves if it ends before its first trial are its own; hidden files do no harm.

    Raises:
        ResumeError: if there is another file, or the folder is a file itself.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ResumeError(f"`--out` must be a folder, got the file {out}")
    own = {SPACE_FILE, IDENTITY_FILE, STATES_FOLDER, TRIALS_FOLDER, DRIVER_FILE, LOG_FILE, LINEAGE_FILE}
    others = sorted(p.name for p in out.iterdir() if p.name not in own and not p.name.startswith("."))
    if others:
        raise ResumeError(
            f"`--out` must be a new or an empty folder, got {out} with {len(others)} other files, such as {others[0]!r}"
        )


def check_owner(out: Path) -> None:
    """Check that all states belong to this user, because Tune unpickles them, which can run any code.

    Raises:
        ResumeError: if a file belongs to another user, or is a pickle that this package never writes.
    """
    for path in (out, *(file for part in (TRIALS_FOLDER, STATES_FOLDER) for file in (out / part).rglob("*"))):
        # Ray unpickles a file of this name in any checkpoint. This package never writes one.
        if path.name == "_dict_checkpoint.pkl":
            raise ResumeError(
                f"`{path}` must not exist: Tune would unpickle it, which can run any code, and this package never "
                "writes such a file; use --trust to resume anyway"
            )
        owner = path.lstat().st_uid if hasattr(os, "getuid") else None
        if owner is not None and owner != os.getuid():
            raise ResumeError(
                f"`{path}` must belong to you, got user {owner}: Tune unpickles its states, which can run any code; "
                "use --trust to resume anyway"
            )


def check_maps(out: Path, space: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the trials of an experiment use the maps that its states are of, because λ depends on them.

    Args:
        out: results folder.
        space: name → what `check_task` knows about a hyperparameter.

    Raises:
        ResumeError: if a map differs. Folders of earlier versions name no map.
    """
    path = out / SPACE_FILE
    saved = json.loads(path.read_text()) if path.exists() else {}
    for name, about in space.items():
        theirs = saved.get(name, {}).get("map", "no map")
        if theirs != about["map"]:
            raise ResumeError(
                f"`{out}` must hold an experiment with the same maps, got {theirs} for '{name}', here {about['map']}; "
                "start again in another folder"
            )


def check_identity(out: Path, identity: Mapping[str, str]) -> None:
    """Check that the task has the same `Task.identity` as in the experiment, because its trials would refuse another.

    Args:
        out: results folder.
        identity: that of the task now.

    Raises:
        ResumeError: if they differ. Folders of earlier versions have none.
    """
    path = out / IDENTITY_FILE
    saved = json.loads(path.read_text()) if path.exists() else {}
    for name, theirs in saved.items():
        if identity.get(name) != theirs:
            raise ResumeError(
                f"`{out}` must hold an experiment with the same {name}, got {theirs}, here {identity.get(name)}; the "
                "data of the task have changed"
            )


def check_same(now: Mapping[str, Any], saved: Mapping[str, Any], what: str) -> None:
    """Check that a configuration is the one with which an experiment or a comparison has started.

    Args:
        now: the configuration.
        saved: that of the folder.
        what: `experiment` or `comparison`, for the error.

    Raises:
        ResumeError: if they differ; the message shows the values that differ, and no others.
    """
    here, there = ({key: json.dumps(value) for key, value in flat(one).items()} for one in (now, saved))
    changed = [key for key in {**there, **here} if here.get(key) != there.get(key)]
    if not changed:
        return
    first, *others = (f"got {here.get(key, 'nothing')} instead of {there.get(key, 'nothing')}" for key in changed[:3])
    also = "".join(f"; `{key}` too, {told}" for key, told in zip(changed[1:], others, strict=False))
    more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise ResumeError(f"`{changed[0]}` must be the same as in the {what} to resume, {first}{also}{more}")


def check_saved(config: ExperimentConfig, out: Path) -> None:
    """Check that a configuration is that of the experiment in a results folder.

    Raises:
        ResumeError: see `check_same`.
    """
    saved = json.loads((out / CONFIG_FILE).read_text())
    check_same(config.model_dump(), {"control": False, **saved}, "experiment")  # earlier versions had no control


def check_resumable(config: ExperimentConfig, out: Path) -> dict[str, str]:
    """Check that an experiment can be resumed, and return the status of each trial by its id.

    Raises:
        ResumeError: if the configuration differs from the saved one, or Tune's states are missing or damaged.
    """
    check_saved(config, out)
    states = state_files(out / TRIALS_FOLDER)
    if not states:
        raise ResumeError(
            f"`{out / TRIALS_FOLDER}` must hold Tune's experiment state, got none: the experiment was killed before "
            "Tune wrote one; remove the folder and start again"
        )
    try:
        known = trial_statuses(states[-1])
        # The state of Tune's own random and grid search has another file name.
        kinds = ("search*state*", "basic-variant-state*")
        searchers = sorted(path for kind in kinds for path in (out / TRIALS_FOLDER).glob(kind))
        if not searchers:
            raise ResumeError(f"`{out / TRIALS_FOLDER}` must hold the searcher's state, got no such file")
        for path in searchers:
            if path.name.startswith("searcher-state-") and config.tune.searcher == "bo":
                json.loads(path.read_text())
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ResumeError(f"`{out / TRIALS_FOLDER}` must hold readable states, got: {error}") from error
    return known


def slots_of(config: ExperimentConfig) -> int:
    """Number of trials that the cluster can run at the same time; the workers of a trial may be on several machines.

    Raises:
        ValueError: if no machine can run a worker, or the cluster has no room for the workers of a trial; Tune would
            wait forever.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": config.tune.cpu, "GPU": config.tune.gpu}
    room = sum(
        int(min(machine.get(name, 0) / amount for name, amount in wanted.items() if amount)) for machine in machines
    )
    if room == 0:
        for name, amount in wanted.items():
            most = max((machine.get(name, 0) for machine in machines), default=0)
            if amount > most:
                key = f"tune.{name.lower()}"
                raise ValueError(f"`{key} <= {name}s of the largest machine` must hold, got {amount:g} and {most:g}")
        raise ValueError(
            f"`tune.cpu` and `tune.gpu` must fit one machine together, got {config.tune.cpu:g} CPUs and "
            f"{config.tune.gpu:g} GPUs"
        )
    if room < config.tune.workers:
        raise ValueError(
            f"`tune.workers` must fit the cluster, got {config.tune.workers} workers and room for {room} of them"
        )
    return room // config.tune.workers


def check_shared(out: Path) -> None:
    """Check that every machine of the cluster can access the results folder; a machine that dies meanwhile is ignored.

    Raises:
        ValueError: if a machine cannot access the folder, or does not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    with tempfile.NamedTemporaryFile(dir=out, prefix=".seen-") as mark:
        first = [_ask(node, mark.name) for node in nodes]
        for node, answer in zip(nodes, first, strict=True):
            if _sees(node, mark.name, answer) is False:
                raise ValueError(
                    f"`--out` must be storage that every machine of the cluster shares, got {out}, which machine "
                    f"{node['NodeManagerAddress']} cannot access"
                )


def _sees(node: Mapping[str, Any], path: str, answer: Any) -> bool | None:
    """Whether a machine sees a file; None if the machine has died."""
    for attempt in range(ATTEMPTS):
        try:
            return bool(ray.get(answer, timeout=ANSWER_SECONDS))
        except RayTaskError:
            raise
        except RayError as error:
            reason = error
        if node["NodeID"] not in {other["NodeID"] for other in ray.nodes() if other["Alive"]}:
            logger.warning("machine %s died before it answered whether it sees %s", node["NodeManagerAddress"], path)
            return None
        time.sleep(attempt)
        answer = _ask(node, path)
    address = node["NodeManagerAddress"]
    raise ValueError(f"`--address` must be a cluster whose machines answer, got no answer from {address}: {reason}")


def _ask(node: Mapping[str, Any], path: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return _exists.options(scheduling_strategy=there).remote(path)


@ray.remote(num_cpus=0)
def _exists(path: str) -> bool:
    return Path(path).exists()
