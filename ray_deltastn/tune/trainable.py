"""Δ-STN as a Tune trial: the trial tunes its regularisation, and Tune's searcher tunes the other options."""

from __future__ import annotations

import gc
import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from ray.tune import PlacementGroupFactory, Trainable

from ray_deltastn.methods import Workers
from ray_deltastn.methods.workers import TIMEOUT
from ray_deltastn.training.columns import SECONDS, WARNINGS
from ray_deltastn.training.files import written_whole
from ray_deltastn.training.saved import STATE_FILE
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.tuner import SelfTuner
from ray_deltastn.training.warned import RunWarning
from ray_deltastn.tune.crew import Crew, make_tuner
from ray_deltastn.tune.folder.own_states import Found, first_line, newest_own, read_state
from ray_deltastn.tune.pickled import warn_of_large
from ray_deltastn.tune.repeats import with_own_seed
from ray_deltastn.tune.resources import bundle_of, workers_of

logger = logging.getLogger(__name__)

_NO_MEMORY = (
    "out of device memory: lower `batch_size`, `valid_batch_size` or `response_fraction`, use `precision: bf16`, or "
    "raise `resources.gpu`"
)
Result = TypeVar("Result")

#: Part of the error text when the disk is full.
NO_ROOM = "must have room for a checkpoint"


class DeltaSTNTrainable(Trainable):
    """Tune trial that trains a task and tunes its regularisation online.

    Keys of `config`:

    - `task`: a function `build(config) -> Task`, an import string `"module:function"`, or the name of a ready task;
    - any option of `Settings` (`method`, `epochs`, `lr`, …), as a constant or a Tune domain;
    - `resources`: what one trial requests from Ray, such as `{"cpu": 1, "gpu": 0.25}`; the default is one CPU. With
      `workers`, such as `{"workers": 4, "gpu": 1}`, so many processes train the network together, each with these CPUs
      and GPUs: the trial itself, and actors in its placement group (see `Workers`);
    - `warm_start`: `{"values": {...}, "scale": {...}}`, each by hyperparameter; the trial starts with these instead of
      the task's initial values (see `WarmStart`);
    - `__trial_index__`, which Tune's `Repeater` sets: it goes into the seed, so that the repeats differ;
    - any other key that `build` reads.

    `tune.with_parameters(DeltaSTNTrainable, data=data)` puts `data` into Ray's object store once, and the trial calls
    `build(config, data=data)`. A config that holds the data itself is copied into Tune's state for every trial; a value
    that pickles to more than 10 MB gives a `RunWarning`.

    A report holds the columns of `SelfTuner.step`, and these:

    - `timestamp`: Unix time of the report, in seconds;
    - `seconds/checkpoint`: seconds spent on checkpoints so far;
    - `seconds/between`: seconds between the steps of this trial so far, in which Tune saves checkpoints and processes
      reports;
    - `warning/damaged_checkpoints`: number of damaged checkpoints that the trial skipped when it resumed.

    A trial that diverges, or runs out of device memory during training, ends as finished, with infinite losses and the
    reason in `stop_reason`. A trial that loses one of its workers fails, and Tune restores it from its last checkpoint
    (`max_failures`). After a checkpoint is loaded, the trial's config takes precedence over it: a learning rate
    that a scheduler has changed takes effect.

    Raises:
        ValueError: in `setup`, if the config or the task breaks a rule.
        OutOfMemoryError: in `setup`, if the device has too little memory for the task.
    """

    tuner: SelfTuner
    _crew: Crew | None = None  # the workers of a trial with several
    _saving = 0.0  # seconds spent on checkpoints
    _between = 0.0  # seconds between steps, including `_saving`
    _left: float | None = None  # time at which the last step ended
    _damaged = 0  # number of damaged checkpoints that were skipped

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """CPUs and (fractional) GPUs of one trial, from `config["resources"]`: one bundle for each worker.

        Raises:
            ValueError: if a resource is unknown, or an amount is negative or not a number.
        """
        warn_of_large(config)  # Tune calls this in the driver before it copies the config into its state
        return PlacementGroupFactory([bundle_of(config)] * workers_of(config))

    def setup(self, config: dict[str, Any], **data: Any) -> None:
        """Build the task and its tuner (called by Tune).

        Args:
            config: config of the trial.
            data: the arguments of `tune.with_parameters`; the function of the task gets them too.
        """
        warn_of_large(config)
        config = with_own_seed(config)
        for key in config:
            near = Settings.nearest(key)
            if key not in Settings.names() and near is not None and near not in config:
                warnings.warn(
                    f"config key {key!r} is not an option of a trial; did you mean {near!r}?", RunWarning, stacklevel=2
                )
        bundle = self._granted(config)
        try:
            workers = self._hire(workers_of(config), bundle)
            self.tuner = self._together(
                lambda: make_tuner(config, data, bundle, workers), "setup", config, data, bundle
            )
        except RuntimeError as error:
            if not _lacks_memory(error):
                raise
            raise torch.OutOfMemoryError(f"{_NO_MEMORY}; {first_line(error)}") from error
        self._saving, self._between, self._left, self._damaged = 0.0, 0.0, None, 0

    def _granted(self, config: dict[str, Any]) -> dict[str, float]:
        """CPUs and GPUs of this process, and of each other worker."""
        granted, workers = self.trial_resources, workers_of(config)
        if granted is None:
            # Outside Tune, Ray assigns no GPU to this process. Use the one that PyTorch finds.
            found = {"GPU": float(torch.cuda.is_available())} if workers == 1 else {}
            return {**bundle_of(config), **found}
        bundles = granted.bundles or [bundle_of(config)]
        if workers > 1 and len(bundles) != workers:
            raise ValueError(
                f"`resources.workers` must be the number of bundles of the trial, got {workers} workers and "
                f"{len(bundles)} bundles"
            )
        return dict(bundles[0])

    def _hire(self, size: int, bundle: Mapping[str, float]) -> Workers:
        """The workers of the trial; those of the trial before, in a reused actor, if there are as many."""
        if self._crew is not None and not self._crew.fits(size, bundle):
            self._crew.close()
            self._crew = None
        if self._crew is None and size > 1:
            self._crew = Crew(size, bundle, TIMEOUT)
        return Workers.alone() if self._crew is None else self._crew.workers

    def _together(self, own: Callable[[], Result], name: str, *arguments: Any) -> Result:
        """Make a call on all workers of the trial."""
        return own() if self._crew is None else self._crew.together(own, name, *arguments)

    def step(self) -> dict[str, Any]:
        """Train until the next report (called by Tune)."""
        if self.iteration == 0:
            self._continue_from_newest()
        if self._left is not None:
            self._between += time.perf_counter() - self._left
        # The loaded state may be from a trial that had already ended.
        if self.tuner.done:
            return self._complete(self.tuner.last_report)
        try:
            report = self._together(self.tuner.step, "step")
        except RuntimeError as error:
            if not _lacks_memory(error):
                raise
            # A restart would fail in the same way. An infinite loss tells the searcher to avoid this region.
            if self._crew is not None:  # the other workers have ended
                self.tuner.workers = Workers.alone()
            report = self.tuner.give_up(f"{_NO_MEMORY}; {first_line(error)}")
        self._left = time.perf_counter()
        return self._complete(report)

    def _complete(self, report: Mapping[str, Any]) -> dict[str, Any]:
        own: dict[str, Any] = {"timestamp": time.time(), WARNINGS("damaged_checkpoints"): float(self._damaged)}
        own |= SECONDS.named({"checkpoint": self._saving, "between": self._between})
        return {**report, **own, "done": self.tuner.done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trial's state atomically (called by Tune).

        Raises:
            OSError: if the state cannot be written; earlier checkpoints stay.
        """
        started = time.perf_counter()
        path = Path(checkpoint_dir, STATE_FILE)
        own: dict[str, Any] = {"iteration": self.iteration, "trial_id": self.trial_id}
        own |= {"saving": self._saving, "between": self._between, "damaged": self._damaged}
        state = {**self._state(), **own}
        try:
            with written_whole(path) as draft:
                torch.save(state, draft)
        except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError when the disk is full
            free = f"{shutil.disk_usage(checkpoint_dir).free / 2**20:.0f} MiB free"
            raise OSError(f"`{checkpoint_dir}` {NO_ROOM}, got {free}: {first_line(error)}") from error
        self._saving += time.perf_counter() - started

    def _state(self) -> dict[str, Any]:
        alone = self._crew is None or self._crew.ended
        return self.tuner.state_dict() if alone else self._together(self.tuner.state_dict, "state")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Continue from a checkpoint, read as data only (called by Tune).

        If the checkpoint is damaged, the trial continues from the newest earlier checkpoint of its own that is
        readable. Later reports count the damaged ones.

        Raises:
            ValueError: if no checkpoint is readable, or the state belongs to another task or method.
        """
        path = Path(checkpoint, STATE_FILE)
        try:
            state = read_state(path.read_bytes, str(path))
        except ValueError as error:
            state = self._earlier(error)
        self._restore(state)

    def _own(self, most: float = math.inf) -> Found:
        """The newest readable state of this trial in Tune's storage, of at most some iteration."""
        storage = getattr(self, "_storage", None)  # only a trial of Tune has one
        if storage is None:
            return Found(None, "", 0)
        return newest_own(storage.storage_filesystem, storage.trial_fs_path, self.trial_id, most)

    def _earlier(self, reason: ValueError) -> dict[str, Any]:
        """The newest readable state before a damaged checkpoint; sets Tune's iteration to that of the state."""
        # Tune has set the iteration to that of the damaged checkpoint.
        found = self._own(self.iteration or math.inf)
        if found.state is None:
            raise reason
        logger.warning("%s; continuing from '%s'", reason, found.name)
        self._damaged += max(1, found.damaged)
        self._iteration = found.state["iteration"]
        return found.state

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Load a state, and its count of damaged checkpoints if the state was written by this trial."""
        self._together(lambda: self.tuner.load_state_dict(state), "load", state)
        self._saving, self._between, self._left = state.get("saving", 0.0), state.get("between", 0.0), None
        if state.get("trial_id") == self.trial_id:
            self._damaged += state.get("damaged", 0)

    def _continue_from_newest(self) -> None:
        """Continue from the newest checkpoint of this trial, if there is one.

        A driver that was killed before it saved its state does not know the newest checkpoints. After it resumes, it
        would restart such a trial from the beginning.
        """
        found = self._own()
        if found.state is None:
            return
        self._damaged = found.damaged
        self._restore(found.state)
        self._iteration = found.state["iteration"]
        logger.info("continuing from the checkpoint of report %d, which the driver did not know", self._iteration)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial in the same process (called by Tune when actors are reused)."""
        self._release()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Release the model and its device memory, and end the other workers (called by Tune at the end)."""
        self._release()
        if self._crew is not None:
            self._crew.close()

    def _release(self) -> None:
        if "tuner" in self.__dict__:
            self.tuner.release()
            del self.tuner
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _lacks_memory(error: RuntimeError) -> bool:
    """Whether the device is out of memory; cuBLAS and cuDNN report it with their own status codes."""
    return isinstance(error, torch.OutOfMemoryError) or "_STATUS_ALLOC_FAILED" in str(error)
