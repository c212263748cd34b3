"""The workers of a trial: the trial itself is the first, the others are actors in its placement group.

Tune drives a class trainable from outside, one call at a time: `train`, `save`, `restore`, `reset_config`. A worker
group of Ray Train is driven by Train's own controller: it runs one function from its start to its end, which reports
and saves by itself, and its class is internal. So the workers are plain actors, which get each call of Tune from the
trial. Ray ends them when the trial's actor ends, because it owns them.

A call goes to the actors first, and then the trial makes it itself. All of them meet in the collective operations of
the call. A worker that fails leaves a note of its error in the store of the process group and ends its process. So the
others, which wait for it, fail at once, and the trial raises the error of the note. Tune then restores the trial from
its last checkpoint, with new workers.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import ray
import torch
import torch.distributed as dist
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_deltastn.methods import Workers
from ray_deltastn.methods.workers import backend
from ray_deltastn.tasks import build_task
from ray_deltastn.training import random_state
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.tuner import SelfTuner
from ray_deltastn.training.warned import RunWarning
from ray_deltastn.tune.folder.own_states import first_line

#: Seconds in which the cause of a failure must reach the trial.
CAUSE_SECONDS = 15.0

Found = TypeVar("Found")


def make_tuner(
    config: Mapping[str, Any], data: Mapping[str, Any], bundle: Mapping[str, float], workers: Workers
) -> SelfTuner:
    """Build the task of a trial and its tuner.

    Args:
        config: config of the trial.
        data: further arguments of the function of the task.
        bundle: CPUs and GPUs that Ray has granted to this worker.
        workers: the workers of the trial.
    """
    options = {name: config[name] for name in Settings.names() if name in config}
    if bundle.get("GPU", 0.0) == 0 and options.get("device", "auto") == "auto":
        options["device"] = "cpu"
    # Ray sets OMP_NUM_THREADS when a worker starts, but a reused actor may have more CPUs for its next trial.
    torch.set_num_threads(max(1, int(bundle.get("CPU", 1.0))))
    settings = Settings(**options)
    with random_state.isolated(settings.seed):
        task = build_task(config, **data)
    if config.get("warm_start"):
        # First the maps of the trial: the box of other maps could cut a value off.
        task.space.use(settings.domains)
        task.space.start_from(config["warm_start"]["values"], config["warm_start"]["scale"])
    return SelfTuner(task, workers=workers, **options)


@dataclass(frozen=True)
class _Failure:
    """The error of a worker, as the others get to know it."""

    reason: str
    lacks_memory: bool = False
    is_connection: bool = False

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        reason = f"{type(error).__name__}: {first_line(error)}"
        return cls(reason, isinstance(error, torch.OutOfMemoryError), _is_connection(error))

    def as_error(self, rank: int) -> RuntimeError:
        """The error of the trial."""
        kind = torch.OutOfMemoryError if self.lacks_memory else RuntimeError
        return kind(f"worker {rank} of the trial failed: {self.reason}")


class Member:
    """One of the other workers of a trial, which runs as an actor."""

    def __init__(self) -> None:
        warnings.simplefilter("ignore", RunWarning)  # the trial gives the same ones
        self._tuner: SelfTuner | None = None
        self._workers: Workers | None = None
        self._store: Any = None

    def begin(self, rank: int, size: int, host: str, port: int, gpus: bool, timeout: float) -> None:
        """Join the process group."""
        limit = datetime.timedelta(seconds=timeout)
        self._store = dist.TCPStore(host, port, size, False, limit)  # type: ignore[attr-defined]
        _join(self._store, rank, size, gpus, limit)
        self._workers = Workers()

    def call(self, name: str, *arguments: Any) -> None:
        """Make a call together with the others; a failure ends the process, because they would wait for it."""
        try:
            getattr(self, f"_{name}")(*arguments)
        except Exception as error:
            assert self._workers is not None
            self._store.set(_note_of(self._workers.rank), json.dumps(asdict(_Failure.of(error))))
            os._exit(1)

    def _setup(self, config: Mapping[str, Any], data: Mapping[str, Any], bundle: Mapping[str, float]) -> None:
        if self._tuner is not None:
            self._tuner.release()
            self._tuner = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        assert self._workers is not None
        self._tuner = make_tuner(config, data, bundle, self._workers)

    def _step(self) -> None:
        assert self._tuner is not None
        self._tuner.step()

    def _state(self) -> None:
        assert self._tuner is not None
        self._tuner.state_dict()

    def _load(self, state: Mapping[str, Any]) -> None:
        assert self._tuner is not None
        self._tuner.load_state_dict(state)


class Crew:
    """The workers of a trial, as the trial sees them.

    Args:
        size: number of workers, with the trial.
        bundle: CPUs and GPUs of each.
        timeout: seconds after which a worker that waits for the others fails.

    Attributes:
        workers: the process group.
        ended: whether the actors have ended, after a failure too.
    """

    def __init__(self, size: int, bundle: Mapping[str, float], timeout: float) -> None:
        self.size, self.bundle, self._timeout = size, dict(bundle), timeout
        self.ended = False
        group = get_current_placement_group()
        options: dict[str, Any] = {"num_cpus": bundle.get("CPU", 0.0), "num_gpus": bundle.get("GPU", 0.0)}
        kind = ray.remote(Member)
        self.members: list[Any] = []
        for rank in range(1, size):
            there = {} if group is None else {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, rank)}
            self.members.append(kind.options(**options, **there).remote())
        gpus = self._gpus = bundle.get("GPU", 0.0) > 0 and torch.cuda.is_available()
        host, limit = ray.util.get_node_ip_address(), datetime.timedelta(seconds=timeout)
        # Port 0: the system chooses a free one.
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            host, 0, size, True, limit, wait_for_workers=False
        )

        def join() -> Workers:
            _join(self._store, 0, size, gpus, limit)
            return Workers()

        # Actors that cannot start must fail here: in the process group the trial would wait for them.
        self._get([member.__ray_ready__.remote() for member in self.members])
        begun = [
            member.begin.remote(rank, size, host, self._store.port, gpus, timeout)
            for rank, member in enumerate(self.members, 1)
        ]
        self.workers = self._met(begun, join)

    def fits(self, size: int, bundle: Mapping[str, float]) -> bool:
        """Whether these workers can take the next trial."""
        return not self.ended and (self.size, self.bundle) == (size, dict(bundle))

    def together(self, own: Callable[[], Found], name: str, *arguments: Any) -> Found:
        """Make a call on all workers.

        Args:
            own: the call of the trial itself.
            name: the call of the others: `setup`, `step`, `state` or `load`.
            arguments: arguments of the call of the others.

        Raises:
            RuntimeError: if another worker has failed; all have then ended.
        """
        shared = [ray.put(argument) for argument in arguments]
        return self._met([member.call.remote(name, *shared) for member in self.members], own)

    def _met(self, calls: Sequence[Any], own: Callable[[], Found]) -> Found:
        try:
            found = own()
        except BaseException as error:
            # The connection to a worker that has failed is closed. That worker knows why.
            cause = self._cause(calls) if _is_connection(error) else None
            self.close(failed=True)
            if cause is None:
                raise
            raise cause from error
        self._get(calls)
        return found

    def _get(self, calls: Sequence[Any]) -> None:
        try:
            ray.get(list(calls), timeout=self._timeout)
        except (RayActorError, RayTaskError, GetTimeoutError):
            cause = self._cause(calls) or RuntimeError(
                f"all workers of the trial must answer within {self._timeout:g} s, got no answer from some"
            )
            self.close(failed=True)
            raise cause from None

    def _cause(self, calls: Sequence[Any]) -> RuntimeError | None:
        """The first failure among calls that is not about the connection to another worker, or else the first."""
        found: list[tuple[bool, RuntimeError]] = []
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=CAUSE_SECONDS)
        for rank, call in enumerate(calls, 1):
            try:
                if call in ready:
                    ray.get(call)
            except RayActorError as error:
                failure = self._note(rank)
                died = RuntimeError(f"worker {rank} of the trial died: {first_line(error)}")
                found.append((False, died) if failure is None else (failure.is_connection, failure.as_error(rank)))
            except RayTaskError as error:  # from `begin`
                failure = _Failure.of(error.cause)
                found.append((failure.is_connection, failure.as_error(rank)))
        return min(found, key=lambda one: one[0])[1] if found else None

    def _note(self, rank: int) -> _Failure | None:
        """The note of a worker that has failed; one that was killed has left none."""
        key = _note_of(rank)
        if not self._store.check([key]):
            return None
        return _Failure(**json.loads(self._store.get(key)))

    def close(self, failed: bool = False) -> None:
        """End the other workers and the process group.

        Args:
            failed: whether a collective operation may have begun that cannot end.
        """
        if self.ended:
            return
        self.ended = True
        for member in self.members:
            ray.kill(member)
        if not dist.is_initialized():
            return
        # NCCL would wait for such an operation. PyTorch's function that does not wait has no public name.
        abort = getattr(dist.distributed_c10d, "_abort_process_group", None)
        if failed and self._gpus and abort is not None:
            abort()
        else:
            dist.destroy_process_group()


def _note_of(rank: int) -> str:
    """Where a worker leaves a note of its error in the store."""
    return f"failure/{rank}"


def _join(store: Any, rank: int, size: int, gpus: bool, timeout: datetime.timedelta) -> None:
    dist.init_process_group(backend(gpus), store=store, rank=rank, world_size=size, timeout=timeout)


def _is_connection(error: BaseException) -> bool:
    """Whether an error is about a connection to another worker; gloo's errors have no kind of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
