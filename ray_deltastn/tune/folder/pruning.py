"""Delete old checkpoints, but only those that no saved experiment state can refer to."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback

from ray_deltastn.tune.folder.layout import CHECKPOINT, state_files


class PruneCheckpoints(Callback):
    """Keeps the newest checkpoints of each trial, and every checkpoint that a saved Tune state may refer to.

    Tune's `num_to_keep` deletes a checkpoint before it writes a state that no longer refers to it. If the driver is
    killed in between, the trial cannot be resumed. Therefore Tune keeps all checkpoints, and this callback deletes a
    checkpoint only if it was already older than the newest one two states ago.

    Args:
        folder: folder with complete copies of Tune's states (see `KeepStates`).
        keep: smallest number of checkpoints to keep for each trial.
        every: seconds between checks for a new state.
    """

    def __init__(self, folder: Path, keep: int = 2, every: float = 1.0) -> None:
        self.folder = folder
        self.keep = keep
        self.every = every
        self._looked = float("-inf")
        self._written = 0.0
        self._known: dict[str, Path] = {}
        self._before: dict[str, Path] = {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Delete old checkpoints if there is a new state (called by Tune)."""
        moment = time.monotonic()
        if moment - self._looked < self.every:
            return
        self._looked = moment
        written = self._last_state()
        if written > self._written:
            # Writing a state takes time. The new state certainly contains what Tune knew two states ago.
            now = _newest(trials)
            self._prune(self._before, {*self._before.values(), *self._known.values(), *now.values()})
            self._written, self._before, self._known = written, self._known, now

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Keep only the newest checkpoints, if Tune's last state has been written (called by Tune)."""
        now = _newest(trials)
        written = self._last_state()
        if all(path.stat().st_mtime <= written for path in now.values() if path.exists()):
            self._prune(now, set(now.values()))

    def _last_state(self) -> float:
        return max((path.stat().st_mtime for path in state_files(self.folder)), default=0.0)

    def _prune(self, known: dict[str, Path], used: set[Path]) -> None:
        for newest in known.values():
            behind = sorted(path for path in newest.parent.glob(f"{CHECKPOINT}*") if path.name < newest.name)
            for path in behind[: len(behind) - self.keep + 1]:
                if path not in used:  # with PBT, a trial's newest checkpoint may be in the folder of another trial
                    shutil.rmtree(path, ignore_errors=True)


def _newest(trials: list[Any]) -> dict[str, Path]:
    """Newest checkpoint that Tune knows of each trial; the folder may hold newer ones of a killed run."""
    return {trial.trial_id: Path(trial.checkpoint.path) for trial in trials if trial.checkpoint is not None}
