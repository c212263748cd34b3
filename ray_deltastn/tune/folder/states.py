"""Complete copies of Tune's states.

Tune overwrites its state files in place. If the disk is full, or the driver is killed at that moment, a file is
incomplete and the experiment cannot be resumed. The copies are written to a temporary file and renamed, so the last
complete state always exists.
"""

from __future__ import annotations

import json
import os
import pickletools
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ray.tune import Callback

from ray_deltastn.training.files import written_whole
from ray_deltastn.tune.folder.layout import STATE_PREFIX, TRIALS_FOLDER, state_files

_SEARCHERS = ("search", "basic-variant")


def _parts(state: Path) -> list[Path]:
    """Files of one state: the experiment state, and the searcher's and the callbacks' states."""
    run = state.stem.removeprefix(STATE_PREFIX)
    return sorted(path for path in state.parent.glob(f"*{run}*") if path.suffix in (".json", ".pkl"))


def whole(state: Path) -> dict[str, bytes] | None:
    """Contents of all files of a state, by file name; None if one of them is incomplete."""
    contents = {path.name: path.read_bytes() for path in _parts(state)}
    return contents if all(map(_is_whole, contents.values())) else None


def _is_whole(data: bytes) -> bool:
    try:
        if data.startswith(b"\x80"):  # a pickle, whatever its file extension; this only reads its opcodes
            return [*pickletools.genops(data)][-1][0].name == "STOP"
        json.loads(data)
    except ValueError:
        return False
    return True


def is_written(folder: Path) -> bool:
    """Whether the newest state in a folder is complete; true if there is no state."""
    states = state_files(folder)
    return not states or whole(states[-1]) is not None


def _write(contents: Mapping[str, bytes], folder: Path) -> None:
    """Write all files, or none; files of the same names are replaced."""
    with ExitStack() as drafts:
        for name, data in contents.items():
            drafts.enter_context(written_whole(folder / name)).write_bytes(data)


class KeepStates(Callback):
    """Copies Tune's newest state each time Tune has written one.

    The driver first writes a state in a staging folder, and another thread then copies it to the experiment's folder.
    This callback copies from the staging folder. So the trials', the searcher's and the callbacks' parts of a copy
    always have the same age.

    Args:
        trials: Tune's folder of the experiment; states are read there if the staging folder is unknown.
        kept: folder of the copies. The copy of an experiment state keeps the time at which Tune wrote it.
        every: seconds between checks for a new state.
    """

    def __init__(self, trials: Path, kept: Path, every: float = 1.0) -> None:
        self.trials = trials
        self.kept = kept
        self.every = every
        self._looked = float("-inf")
        self._written = 0.0

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Copy a new state, if there is one (called by Tune)."""
        moment = time.monotonic()
        if moment - self._looked >= self.every:
            self._looked = moment
            self.keep(_written_in(trials))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Copy the last state (called by Tune)."""
        self.keep(_written_in(trials))

    def keep(self, folder: Path | None = None) -> None:
        """Copy the newest state, unless it is already copied or incomplete, or the disk is full."""
        try:
            states = state_files(folder or self.trials)
            if not states or (written := states[-1].stat().st_mtime) == self._written:
                return
            contents = whole(states[-1])
            if contents is None or not any(name.startswith(_SEARCHERS) for name in contents):
                return
            self.kept.mkdir(exist_ok=True)
            _write(contents, self.kept)
            os.utime(self.kept / states[-1].name, (written, written))
            for path in self.kept.iterdir():
                if path.name not in contents:
                    path.unlink()  # it belongs to an earlier run
            self._written = written
        except OSError:
            return  # keep the previous copy; an error in a callback would end the experiment


def _written_in(trials: list[Any]) -> Path | None:
    """Staging folder in which Tune's driver writes its states; None if there is no trial."""
    return Path(trials[0].storage.experiment_driver_staging_path) if trials else None


def mend(trials: Path, kept: Path) -> bool:
    """Replace Tune's newest state with the copy, if it is damaged or belongs to the same run as the copy.

    A kill may leave the files of a state with different ages. So a state of the same run is replaced even if each of
    its files is complete.

    Args:
        trials: Tune's folder of the experiment.
        kept: folder of the copies.

    Returns:
        Whether the newest state was damaged or missing, and has been replaced.
    """
    newest, copies = state_files(trials), state_files(kept)
    if not copies or not trials.is_dir():
        return False
    damaged = not newest or whole(newest[-1]) is None  # a killed driver may have left no state
    contents = whole(copies[-1])
    if contents is None or not (damaged or newest[-1].name == copies[-1].name):
        return False
    _write(contents, trials)
    for path in _parts(newest[-1]) if newest else ():
        if path.name not in contents:
            path.unlink()  # it belongs to a later run, which left no complete state
    return damaged


def trial_statuses(state: Path) -> dict[str, str]:
    """Status of each trial by its id, from an experiment state of Tune."""
    trials = (json.loads(pair[0]) for pair in json.loads(state.read_text())["trial_data"])
    return {trial["trial_id"]: trial["status"] for trial in trials}


def known_trials(out: Path) -> list[str]:
    """Ids of the trials in Tune's newest saved state; empty if there is no state."""
    states = state_files(out / TRIALS_FOLDER)
    return list(trial_statuses(states[-1])) if states else []
