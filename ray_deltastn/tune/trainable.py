"""Δ-STN as a Tune trial: the trial tunes its regularisation, and Tune's searcher tunes the other options."""

from __future__ import annotations

import gc
import logging
import math
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray.tune import PlacementGroupFactory, Trainable

from ray_deltastn.tasks import build_task
from ray_deltastn.training import random_state
from ray_deltastn.training.columns import SECONDS, WARNINGS
from ray_deltastn.training.files import written_whole
from ray_deltastn.training.saved import STATE_FILE
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.tuner import SelfTuner
from ray_deltastn.training.warned import RunWarning
from ray_deltastn.tune.folder.own_states import Found, first_line, newest_own, read_state
from ray_deltastn.tune.pickled import warn_of_large
from ray_deltastn.tune.repeats import with_own_seed

logger = logging.getLogger(__name__)

_NO_MEMORY = (
    "out of device memory: lower `batch_size`, `valid_batch_size` or `response_fraction`, use `precision: bf16`, or "
    "raise `resources.gpu`"
)
#: Part of the error text when the disk is full.
NO_ROOM = "must have room for a checkpoint"


class DeltaSTNTrainable(Trainable):
    """Tune trial that trains a task and tunes its regularisation online.

    Keys of `config`:

    - `task`: a function `build(config) -> Task`, an import string `"module:function"`, or the name of a ready task;
    - any option of `Settings` (`method`, `epochs`, `lr`, …), as a constant or a Tune domain;
    - `resources`: what one trial requests from Ray, such as `{"cpu": 1, "gpu": 0.25}`; the default is one CPU;
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
    reason in `stop_reason`. After a checkpoint is loaded, the trial's config takes precedence over it: a learning rate
    that a scheduler has changed takes effect.

    Raises:
        ValueError: in `setup`, if the config or the task breaks a rule.
        OutOfMemoryError: in `setup`, if the device has too little memory for the task.
    """

    tuner: SelfTuner
    _saving = 0.0  # seconds spent on checkpoints
    _between = 0.0  # seconds between steps, including `_saving`
    _left: float | None = None  # time at which the last step ended
    _damaged = 0  # number of damaged checkpoints that were skipped

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """CPUs and (fractional) GPUs of one trial, from `config["resources"]`.

        Raises:
            ValueError: if a resource is unknown, or an amount is negative or not a number.
        """
        warn_of_large(config)  # Tune calls this in the driver before it copies the config into its state
        return PlacementGroupFactory([_bundle(config)])

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
        options = {name: config[name] for name in Settings.names() if name in config}
        cpus, gpus = self._granted(config)
        if gpus == 0 and options.get("device", "auto") == "auto":
            options["device"] = "cpu"
        # Ray sets OMP_NUM_THREADS when a worker starts, but a reused actor may have more CPUs for its next trial.
        torch.set_num_threads(max(1, int(cpus)))
        try:
            settings = Settings(**options)
            with random_state.isolated(settings.seed):
                task = build_task(config, **data)
            if config.get("warm_start"):
                # First the maps of the trial: the box of other maps could cut a value off.
                task.space.use(settings.domains)
                task.space.start_from(config["warm_start"]["values"], config["warm_start"]["scale"])
            self.tuner = SelfTuner(task, **options)
        except RuntimeError as error:
            if not _lacks_memory(error):
                raise
            raise torch.OutOfMemoryError(f"{_NO_MEMORY}; {first_line(error)}") from error
        self._saving, self._between, self._left, self._damaged = 0.0, 0.0, None, 0

    def _granted(self, config: dict[str, Any]) -> tuple[float, float]:
        granted = self.trial_resources
        bundle = granted.bundles[0] if granted is not None and granted.bundles else _bundle(config)
        # Outside Tune, Ray assigns no GPU. Use the one that PyTorch finds.
        gpus = bundle.get("GPU", 0.0) if granted is not None else float(torch.cuda.is_available())
        return bundle.get("CPU", 1.0), gpus

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
            report = self.tuner.step()
        except RuntimeError as error:
            if not _lacks_memory(error):
                raise
            # A restart would fail in the same way. An infinite loss tells the searcher to avoid this region.
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
        state = {**self.tuner.state_dict(), **own}
        try:
            with written_whole(path) as draft:
                torch.save(state, draft)
        except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError when the disk is full
            free = f"{shutil.disk_usage(checkpoint_dir).free / 2**20:.0f} MiB free"
            raise OSError(f"`{checkpoint_dir}` {NO_ROOM}, got {free}: {first_line(error)}") from error
        self._saving += time.perf_counter() - started

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
        self.tuner.load_state_dict(state)
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
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Release the model and its device memory (called by Tune at the end)."""
        if "tuner" in self.__dict__:
            self.tuner.release()
            del self.tuner
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _bundle(config: Mapping[str, Any]) -> dict[str, float]:
    given = config.get("resources") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"`resources` must be a mapping with 'cpu' and 'gpu', got {given!r}")
    resources = dict(given)
    unknown = set(resources) - {"cpu", "gpu"}
    if unknown:
        raise ValueError(f"`resources` must hold 'cpu' and 'gpu' only, got {sorted(unknown)[0]!r}")
    cpu, gpu = resources.get("cpu", 1), resources.get("gpu", 0)
    for name, amount in (("cpu", cpu), ("gpu", gpu)):
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
            raise ValueError(f"`resources.{name} >= 0` must hold, got {amount!r}")
    return {"CPU": float(cpu), **({"GPU": float(gpu)} if gpu else {})}


def _lacks_memory(error: RuntimeError) -> bool:
    """Whether the device is out of memory; cuBLAS and cuDNN report it with their own status codes."""
    return isinstance(error, torch.OutOfMemoryError) or "_STATUS_ALLOC_FAILED" in str(error)
