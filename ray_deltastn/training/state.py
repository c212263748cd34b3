"""The identity of a run: what a saved state and the run that loads it must have in common."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ray_deltastn.methods import Workers
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.warned import RunWarning

#: Version of the layout of `SelfTuner.state_dict`.
VERSION = 3


def identity(
    method: str,
    space: Mapping[str, str],
    settings: Settings,
    model: nn.Module,
    steps_per_epoch: int,
    task: Mapping[str, str],
) -> dict[str, Any]:
    """Properties in which a state and the run that loads it must agree."""
    schedule = settings.schedule
    return {
        "version": VERSION,
        "method": method,
        "space": dict(space),
        **{
            name: getattr(settings, name)
            for name in ("optimizer", "response_optimizer", "hyper_optimizer", "tune_scale")
        },
        "schedule": schedule.get("name") if isinstance(schedule, Mapping) else schedule,
        **({"task": dict(task)} if task else {}),
        # Positions in the data, and epochs, are counted in minibatches.
        "minibatches per epoch": steps_per_epoch,
        "model": _entries(model),
    }


def _entries(model: nn.Module) -> dict[str, str]:
    """Name → shape of each entry of the model's state, or the name of the entry whose tensor it shares."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        owner = first.setdefault(id(value), name)
        found[name] = "×".join(map(str, value.shape)) if owner == name else f"the tensor of {owner}"
    return found


def require_same(state: Any, own: Mapping[str, Any]) -> None:
    """Raise ValueError with the first difference unless the identity of the state is that of the run."""
    saved = state.get("identity") if isinstance(state, Mapping) else None
    if not isinstance(saved, Mapping):
        raise ValueError(f"`state` must be a SelfTuner's state_dict, got {type(state).__name__} without identity")
    for what, mine in own.items():
        theirs = saved.get(what)
        if theirs == mine:
            continue
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            name = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))[0]
            raise ValueError(
                f"`state` must come from the same {what}, got {theirs.get(name)!r} for '{name}', "
                f"here {mine.get(name)!r}"
            )
        raise ValueError(f"`state` must come from a run with the same {what}, got {theirs!r}, here {mine!r}")


def require_parts(state: Mapping[str, Any], parts: Iterable[str]) -> None:
    """Raise ValueError with the name of the first part that a state lacks."""
    for part in parts:
        if part not in state:
            raise ValueError(f"`state` must hold '{part}', got {', '.join(sorted(state))}")


def state_of_worker(state: Mapping[str, Any], workers: Workers) -> Mapping[str, Any] | None:
    """The random generators of a worker in a state; None, with a warning, for a state of another number of workers."""
    every = state.get("workers", [state])
    if len(every) == workers.size:
        found: Mapping[str, Any] = every[workers.rank]
        return found
    warnings.warn(
        f"the state should come from a run with the same number of workers, got {len(every)}, here {workers.size}: the "
        "run continues, with new random numbers",
        RunWarning,
        stacklevel=3,
    )
    return None
