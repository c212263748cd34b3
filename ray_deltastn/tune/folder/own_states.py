"""The states of one trial in its folder of Tune's storage, on this machine or elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import torch
from pyarrow import fs

from ray_deltastn.training.saved import STATE_FILE
from ray_deltastn.tune.folder.layout import CHECKPOINT

State = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The newest readable state of a trial.

    Attributes:
        state: the state; None if there is none.
        name: its checkpoint folder; empty if there is none.
        damaged: number of checkpoint folders after it whose state cannot be read.
    """

    state: State | None
    name: str
    damaged: int


def newest_own(filesystem: fs.FileSystem, folder: str, trial_id: str, most: float = float("inf")) -> Found:
    """Read the newest state that a trial has written itself.

    A folder of the same name may hold checkpoints of another run, and a copied trial starts from another trial's
    checkpoint. So only a state with the id of the trial counts.

    Args:
        filesystem: the file system of Tune's storage.
        folder: folder of the trial there.
        trial_id: id of the trial.
        most: largest iteration that counts.
    """
    found, damaged = Found(None, "", 0), 0
    for name in _checkpoints(filesystem, folder):
        path = f"{folder}/{name}/{STATE_FILE}"
        try:
            state = read_state(partial(_bytes, filesystem, path), path)
        except ValueError:
            damaged += 1
            continue
        if state.get("trial_id") != trial_id or state["iteration"] > most:
            continue
        damaged = 0
        # A restarted trial counts its checkpoints from zero again, so the last name need not be the newest state.
        if found.state is None or state["iteration"] >= found.state["iteration"]:
            found = Found(state, name, 0)
    return Found(found.state, found.name, damaged)


def _checkpoints(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Names of the checkpoint folders, in order."""
    paths = (PurePosixPath(one.path).name for one in filesystem.get_file_info(_inside(folder)))
    return sorted(name for name in paths if name.startswith(CHECKPOINT))


def _inside(folder: str) -> fs.FileSelector:
    return fs.FileSelector(folder, allow_not_found=True)


def _bytes(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def read_state(content: Callable[[], bytes], name: str) -> State:
    """Read a state, as data only.

    Args:
        content: function that reads the file.
        name: name of the file, for the error.

    Raises:
        ValueError: if the file cannot be read.
    """
    try:
        found: State = torch.load(io.BytesIO(content()), map_location="cpu", weights_only=True)
        return found
    except Exception as error:  # torch.load raises many kinds of exception for a damaged file
        raise ValueError(f"`{name}` must be a readable checkpoint, got: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
