"""What a saved run has left: its best network and its schedule, read from a state, a file, a checkpoint or a result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ray_deltastn.training.in_force import until_best

#: A trial's state in a checkpoint folder.
STATE_FILE = "deltastn.pt"
#: A plain network, and the hyperparameters epoch by epoch, in a results folder.
MODEL_FILE, SCHEDULE_FILE = "model.pt", "schedule.json"
_KINDS = "a state of a SelfTuner, a checkpoint or result of Ray Tune, or a file or folder of one"


def load_weights(source: Any) -> dict[str, Tensor]:
    """The best network of a run, as a `state_dict` of the model's own class.

    It is the network of the report with the best `monitor` (by default the smallest validation loss), for `stn` with
    the response folded in. A checkpoint holds the best network so far, which may be older than the checkpoint.

    Args:
        source: the state of a `SelfTuner` or a file with it, a network or a file with it, a checkpoint of Ray Tune, a
            `Result` of a `ResultGrid`, a checkpoint's folder, or the results folder of `ray-deltastn run` or `refit`.

    Returns:
        The weights, on the CPU.

    Raises:
        ValueError: if the source has no such network.

    Examples:
        >>> tuner = rd.SelfTuner(task, epochs=2)
        >>> reports = list(tuner.fit())
        >>> model = build({}).model
        >>> model.load_state_dict(rd.load_weights(tuner.state_dict()))
        <All keys matched successfully>
    """
    folder = _folder(source)
    if folder is not None and not (folder / STATE_FILE).exists() and (folder / MODEL_FILE).exists():
        weights: dict[str, Tensor] = torch.load(folder / MODEL_FILE, map_location="cpu", weights_only=True)
        return weights
    state = _state(source, plain=True)
    if "best" not in state:
        return dict(state)
    found: dict[str, Tensor] = state["best"]["weights"]
    if not found:
        raise ValueError("`source` must have a report with a finite loss, got none")
    return found


def load_schedule(source: Any, best: bool = False) -> pd.DataFrame:
    """The hyperparameters in force during each epoch of a run, see `SelfTuner.schedule`.

    Args:
        source: see `load_weights`.
        best: end with the epoch of the best report, as a refit should. A folder that has only `schedule.json` does not
            know it.

    Returns:
        One row per epoch, which counts from 1; one column per hyperparameter, in its own domain.

    Raises:
        ValueError: if the source has no schedule, or its best epoch is asked for and not known.
    """
    folder = _folder(source)
    if folder is not None and not (folder / STATE_FILE).exists() and (folder / SCHEDULE_FILE).exists():
        if best:
            raise ValueError(f"`best=True` needs a checkpoint or a state, got {folder}, which has only {SCHEDULE_FILE}")
        given = json.loads((folder / SCHEDULE_FILE).read_text(encoding="utf-8"))
        length = max((len(values) for values in given.values() if isinstance(values, list)), default=1)
        columns = {name: v if isinstance(v, list) else [v] * length for name, v in given.items()}
        return _by_epoch(pd.DataFrame(columns))
    state = _state(source)
    table, found = schedule_of(state), state["best"]
    return until_best(table, found["report"], found["monitor"]) if best else table


def state_of(source: Any) -> Mapping[str, Any]:
    """The state of a run in any source but a results folder, see `load_weights`.

    Raises:
        ValueError: if the source has no state.
        TypeError: if the source is of another kind.
    """
    return _state(source)


def schedule_of(state: Mapping[str, Any]) -> pd.DataFrame:
    """The schedule in a state, see `load_schedule`."""
    order = {name: int(text.partition(":")[0]) for name, text in state["identity"]["space"].items()}
    rows = state["in_force"]["rows"].numpy(force=True)
    return _by_epoch(pd.DataFrame(rows, columns=sorted(order, key=order.__getitem__)))


def _by_epoch(table: pd.DataFrame) -> pd.DataFrame:
    table.index = pd.RangeIndex(1, len(table) + 1, name="epoch")
    return table


def _folder(source: Any) -> Path | None:
    # Ray's `Checkpoint` counts as path-like, but refuses to be one.
    named = isinstance(source, str | os.PathLike) and not hasattr(source, "as_directory")
    path = Path(source) if named else None
    return path if path is not None and path.is_dir() else None


def _state(source: Any, plain: bool = False) -> Mapping[str, Any]:
    """The state in any source, or with `plain` a network; duck typing keeps Ray out of this module."""
    if isinstance(source, Mapping):
        state = source
    elif hasattr(source, "as_directory"):
        with source.as_directory() as folder:
            return _state(folder, plain)
    elif hasattr(source, "checkpoint"):
        if source.checkpoint is None:
            raise ValueError(
                "`source` must have a checkpoint, got a result without one; set `checkpoint_at_end=True` in Tune's "
                "`CheckpointConfig`"
            )
        return _state(source.checkpoint, plain)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        state = _read(path / STATE_FILE if path.is_dir() else path)
    else:
        raise TypeError(f"`source` must be {_KINDS}, got {type(source).__name__}")
    if plain and state and all(isinstance(value, Tensor) for value in state.values()):
        return state
    if "best" not in state or "in_force" not in state:
        names = sorted(map(str, state))
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise ValueError(f"`source` must be {_KINDS}, got {shown or 'nothing'}")
    return state


def _read(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        raise ValueError(f"`source` must be {_KINDS}, got no file {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds of exception for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"`{path}` must be a readable state, got: {reason}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"`{path}` must be {_KINDS}, got {type(found).__name__}")
    return found
