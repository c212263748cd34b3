"""Copies of Tune's own states, whole ones only.

Tune writes over its states in place: a full disk, or a kill at that moment, leaves half of one, and nothing to resume
from. The copies are written beside and renamed, so the last whole one is always there.
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
from ray_deltastn.tune.folder.layout import TRIALS_FOLDER

_STATE = "experiment_state-"
_SEARCHERS = ("search", "basic-variant")


def state_files(folder: Path) -> list[Path]:
    """Tune's experiment states in a folder, the newest last; each run of an experiment writes one of its own."""
    return sorted(folder.glob(f"{_STATE}*.json"))


def _parts(state: Path) -> list[Path]:
    """An experiment state and what was written with it: the searcher's and the callbacks' states."""
    run = state.stem.removeprefix(_STATE)
    return sorted(path for path in state.parent.glob(f"*{run}*") if path.suffix in (".json", ".pkl"))


def whole(state: Path) -> dict[str, bytes] | None:
    """Contents by name of an experiment state and its other parts; None if one was not written to its end."""
    contents = {path.name: path.read_bytes() for path in _parts(state)}
    return contents if all(map(_is_whole, contents.values())) else None


def _is_whole(data: bytes) -> bool:
    try:
        if data.startswith(b"\x80"):  # a pickle, whatever its name says; no code in it is run
            return [*pickletools.genops(data)][-1][0].name == "STOP"
        json.loads(data)
    except ValueError:
        return False
    return True


def is_written(folder: Path) -> bool:
    """Whether the newest state in a folder, if there is one, is whole."""
    states = state_files(folder)
    return not states or whole(states[-1]) is not None


def _write(contents: Mapping[str, bytes], folder: Path) -> None:
    """Write all files, each in place of its namesake, or none."""
    with ExitStack() as drafts:
        for name, data in contents.items():
            drafts.enter_context(written_whole(folder / name)).write_bytes(data)


class KeepStates(Callback):
    """Copies Tune's newest state whenever it has been written.

    It is copied from where Tune's driver writes it, before another thread takes it to the experiment's folder: so the
    parts of a copy, the trials', the searcher's and the callbacks', are always of the same moment.

    Args:
        trials: the experiment's folder, where the states are if no trial says where the driver writes them.
        kept: where the copies go, with the times at which Tune wrote them.
        every: seconds between looks.
    """

    def __init__(self, trials: Path, kept: Path, every: float = 1.0) -> None:
        self.trials = trials
        self.kept = kept
        self.every = every
        self._looked = float("-inf")
        self._written = 0.0

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look for a new state (called by Tune)."""
        moment = time.monotonic()
        if moment - self._looked >= self.every:
            self._looked = moment
            self.keep(_written_in(trials))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Keep the last one (called by Tune)."""
        self.keep(_written_in(trials))

    def keep(self, folder: Path | None = None) -> None:
        """Copy the newest state, unless it has been copied already, is not whole, or there is no room."""
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
                    path.unlink()  # of an earlier run
            self._written = written
        except OSError:
            return  # the copy before stays; what a hook raises would end the experiment


def _written_in(trials: list[Any]) -> Path | None:
    """Where Tune's driver writes its states; None without a trial."""
    return Path(trials[0].storage.experiment_driver_staging_path) if trials else None


def mend(trials: Path, kept: Path) -> bool:
    """Put the copies in place of the newest state; whether that was damaged and is mended.

    That is done where it is damaged, or of the same run: a kill may have left parts of two moments.

    Args:
        trials: the experiment's folder, with Tune's states.
        kept: where the copies are.
    """
    newest, copies = state_files(trials), state_files(kept)
    if not copies or not trials.is_dir():
        return False
    damaged = not newest or whole(newest[-1]) is None  # none: the driver was killed before it was there
    contents = whole(copies[-1])
    if contents is None or not (damaged or newest[-1].name == copies[-1].name):
        return False
    _write(contents, trials)
    for path in _parts(newest[-1]) if newest else ():
        if path.name not in contents:
            path.unlink()  # of a later run, which left nothing whole
    return damaged


def trial_statuses(state: Path) -> dict[str, str]:
    """Trial id → status, from Tune's experiment state."""
    trials = (json.loads(pair[0]) for pair in json.loads(state.read_text())["trial_data"])
    return {trial["trial_id"]: trial["status"] for trial in trials}


def known_trials(out: Path) -> list[str]:
    """Ids of the trials in Tune's newest saved state; none if there is no such state."""
    states = state_files(out / TRIALS_FOLDER)
    return list(trial_statuses(states[-1])) if states else []
