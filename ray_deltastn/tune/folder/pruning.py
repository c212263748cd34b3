"""Old checkpoints deleted only when no saved experiment state can still point at them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback

from ray_deltastn.tune.folder.states import state_files


class PruneCheckpoints(Callback):
    """Keeps the newest checkpoints of each trial, and all that Tune's saved state may resume from.

    Tune's own `num_to_keep` deletes a checkpoint before it writes the state that no longer names it: a driver killed in
    between cannot resume that trial. So Tune keeps all, and this deletes those that were behind the newest one already
    two states ago.

    Args:
        folder: where Tune's states are, whole ones (see `KeepStates`).
        keep: checkpoints kept of each trial, at least.
        every: seconds between looks.
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
        """Look for a new state (called by Tune)."""
        moment = time.monotonic()
        if moment - self._looked < self.every:
            return
        self._looked = moment
        written = self._last_state()
        if written > self._written:
            # What Tune knew two states ago, this one knows for certain, however long it took to be written.
            now = _newest(trials)
            self._prune(self._before, {*self._before.values(), *self._known.values(), *now.values()})
            self._written, self._before, self._known = written, self._known, now

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Leave the newest checkpoints only (called by Tune), if its last state has been written."""
        now = _newest(trials)
        written = self._last_state()
        if all(path.stat().st_mtime <= written for path in now.values() if path.exists()):
            self._prune(now, set(now.values()))

    def _last_state(self) -> float:
        return max((path.stat().st_mtime for path in state_files(self.folder)), default=0.0)

    def _prune(self, known: dict[str, Path], used: set[Path]) -> None:
        for newest in known.values():
            behind = sorted(path for path in newest.parent.glob("checkpoint_*") if path.name < newest.name)
            for path in behind[: len(behind) - self.keep + 1]:
                if path not in used:  # a copied trial's checkpoint is one of the trial it was copied from
                    shutil.rmtree(path, ignore_errors=True)


def _newest(trials: list[Any]) -> dict[str, Path]:
    """Newest checkpoint of each trial that Tune knows of; a killed run may have left others behind."""
    return {trial.trial_id: Path(trial.checkpoint.path) for trial in trials if trial.checkpoint is not None}
