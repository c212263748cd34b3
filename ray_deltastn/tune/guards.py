"""What must hold before an experiment starts or goes on: a free folder, one command, a cluster that can run it."""

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
    CONFIG_FILE,
    LOCK_FILE,
    RESULTS_FILE,
    STATES_FOLDER,
    TRIALS_FOLDER,
    ResumeError,
)
from ray_deltastn.tune.folder.states import state_files, trial_statuses

logger = logging.getLogger(__name__)

#: How often, and how long in seconds, a machine is asked for the results folder; one that has died is not.
ATTEMPTS, ANSWER_SECONDS = 5, 60.0


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold a results folder against other commands; a killed one holds it no longer."""
    lock = FileLock(out / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ResumeError(f"`{out}` must not be in use by another command, got one that is still running") from None
    try:
        yield
    finally:
        lock.release()


def unfinished(out: Path) -> bool:
    """Whether a results folder holds an experiment that has begun and not ended."""
    return (out / CONFIG_FILE).exists() and not (out / RESULTS_FILE).exists()


def check_free(out: Path) -> None:
    """Refuse an unfinished experiment in the way; move a finished one aside."""
    if unfinished(out):
        raise ResumeError(f"`{out}` must not hold an unfinished experiment; continue it with --resume, or remove it")
    if (out / RESULTS_FILE).exists():
        number = 1
        while (kept := out.with_name(f"{out.name}.{number}")).exists():
            number += 1
        out.rename(kept)


def check_owner(out: Path) -> None:
    """Refuse states of someone else: Tune unpickles them, which can run any code."""
    for path in (out, *(file for part in (TRIALS_FOLDER, STATES_FOLDER) for file in (out / part).rglob("*"))):
        # Ray unpickles such a file wherever it lies in a checkpoint; ours have none.
        if path.name == "_dict_checkpoint.pkl":
            raise ResumeError(
                f"`{path}` must not be there: Tune would unpickle it, which can run any code, and no checkpoint of "
                "ours has it; --trust resumes it all the same"
            )
        owner = path.lstat().st_uid if hasattr(os, "getuid") else None
        if owner is not None and owner != os.getuid():
            raise ResumeError(
                f"`{path}` must belong to you, got user {owner}: Tune unpickles its states, which can run any code; "
                "--trust resumes it all the same"
            )


def check_resumable(config: ExperimentConfig, out: Path) -> dict[str, str]:
    """Status by id of the trials of the experiment to resume.

    Raises:
        ResumeError: if its configuration is another one, or Tune's states are missing or damaged.
    """
    saved = json.loads((out / CONFIG_FILE).read_text())
    now = json.loads(json.dumps(config.model_dump()))
    for section in now:
        if saved.get(section) != now[section]:
            raise ResumeError(
                f"`{section}` must be that of the experiment to resume, got {now[section]!r}, "
                f"there {saved.get(section)!r}"
            )
    states = state_files(out / TRIALS_FOLDER)
    if not states:
        raise ResumeError(
            f"`{out / TRIALS_FOLDER}` must hold Tune's experiment state, got none: it was killed too early"
        )
    try:
        known = trial_statuses(states[-1])
        # Tune's own generator of random and grid points has a state of another name.
        kinds = ("search*state*", "basic-variant-state*")
        searchers = sorted(path for kind in kinds for path in (out / TRIALS_FOLDER).glob(kind))
        if not searchers:
            raise ResumeError(f"`{out / TRIALS_FOLDER}` must hold the searcher's state, got none")
        for path in searchers:
            if path.name.startswith("searcher-state-") and config.tune.searcher == "bo":
                json.loads(path.read_text())
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ResumeError(f"`{out / TRIALS_FOLDER}` must hold readable states, got: {error}") from error
    return known


def slots_of(config: ExperimentConfig) -> int:
    """How many trials the cluster can run at a time.

    Raises:
        ValueError: if no machine can run one: Tune would wait for ever.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": config.tune.cpu, "GPU": config.tune.gpu}
    slots = sum(
        int(min(machine.get(name, 0) / amount for name, amount in wanted.items() if amount)) for machine in machines
    )
    if slots == 0:
        for name, amount in wanted.items():
            most = max((machine.get(name, 0) for machine in machines), default=0)
            if amount > most:
                key = f"tune.{name.lower()}"
                raise ValueError(f"`{key} <= {name}s of the largest machine` must hold, got {amount:g} and {most:g}")
        raise ValueError(
            f"one machine must have both {config.tune.cpu:g} CPUs and {config.tune.gpu:g} GPUs for a trial, got none"
        )
    return slots


def check_shared(out: Path) -> None:
    """Raise ValueError unless every machine of the cluster sees the same folder.

    A machine that dies meanwhile is not asked.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    with tempfile.NamedTemporaryFile(dir=out, prefix=".seen-") as mark:
        first = [_ask(node, mark.name) for node in nodes]
        for node, answer in zip(nodes, first, strict=True):
            if _sees(node, mark.name, answer) is False:
                raise ValueError(
                    f"`--out` must be storage that every machine of the cluster shares, got {out}, which "
                    f"{node['NodeManagerAddress']} does not see: trials could not move when a machine dies"
                )


def _sees(node: Mapping[str, Any], path: str, answer: Any) -> bool | None:
    """Whether a machine sees a file; None if it has died."""
    for attempt in range(ATTEMPTS):
        try:
            return bool(ray.get(answer, timeout=ANSWER_SECONDS))
        except RayTaskError:
            raise
        except RayError as error:
            reason = error
        if node["NodeID"] not in {other["NodeID"] for other in ray.nodes() if other["Alive"]}:
            logger.warning("machine %s died before it said whether it sees %s", node["NodeManagerAddress"], path)
            return None
        time.sleep(attempt)
        answer = _ask(node, path)
    address = node["NodeManagerAddress"]
    raise ValueError(f"`--address` must be a cluster whose machines answer, got none from {address}: {reason}")


def _ask(node: Mapping[str, Any], path: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return _exists.options(scheduling_strategy=there).remote(path)


@ray.remote(num_cpus=0)
def _exists(path: str) -> bool:
    return Path(path).exists()
