"""The learning-rate schedule that w₀ and Θ share: PyTorch's own, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, ReduceLROnPlateau, StepLR

ScheduleName = Literal["step", "multistep", "cosine", "plateau"]
_KINDS: dict[str, type[LRScheduler]] = {
    "step": StepLR,
    "multistep": MultiStepLR,
    "cosine": CosineAnnealingLR,
    "plateau": ReduceLROnPlateau,
}


def make_schedule(
    given: str | Mapping[str, Any] | None, epochs: int, optimizer: Optimizer
) -> LRScheduler | ReduceLROnPlateau | None:
    """PyTorch's scheduler of an optimiser, or None.

    Args:
        given: name of a schedule, or a mapping with `name` and the arguments of PyTorch's scheduler.
        epochs: length of the run; the period of `cosine` unless it is given.
        optimizer: whose learning rate it changes.

    Raises:
        ValueError: if there is no such schedule, or its arguments break a rule.
    """
    if given is None:
        return None
    if not isinstance(given, str | Mapping):
        raise ValueError(f"`schedule` must be a name or a mapping with `name`, got {given!r}")
    arguments: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
    name = arguments.pop("name", None)
    if name not in _KINDS:
        raise ValueError(f"`schedule` must be one of {', '.join(get_args(ScheduleName))}, got {name!r}")
    if name == "cosine":
        arguments.setdefault("T_max", epochs)
    try:
        return _KINDS[name](optimizer, **arguments)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise _wrong_arguments(name, arguments, error) from None


def check_schedule(given: str | Mapping[str, Any] | None, epochs: int, lr: float) -> None:
    """Try a schedule out on an optimiser that is thrown away.

    Raises:
        ValueError: if there is no such schedule, or its arguments break a rule.
    """
    if given is None:
        return  # the first optimiser of a process takes a second: PyTorch imports its compiler
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    schedule: Any = make_schedule(given, epochs, optimizer)
    optimizer.step()
    try:
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(1.0)
        else:
            schedule.step()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise _wrong_arguments(type(schedule).__name__, given, error) from None


def replayed(given: str | Mapping[str, Any] | None, rates: Mapping[int, float]) -> str | Mapping[str, Any] | None:
    """The schedule of a run for a run without validation data: `plateau` becomes `multistep` with the same falls.

    Args:
        given: the schedule of the run.
        rates: completed epochs → learning rate then, or its share of the rate at the start, which belongs to 0 epochs.
    """
    arguments: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given or {})
    if arguments.get("name") != "plateau":
        return given
    factor = arguments.get("factor", 0.1)
    falls: list[int] = []
    for before, epoch in pairwise(sorted(rates)):
        falls += [epoch] * round(math.log(rates[epoch] / rates[before]) / math.log(factor))
    return {"name": "multistep", "milestones": falls, "gamma": factor}


def _wrong_arguments(name: str, arguments: Any, error: Exception) -> ValueError:
    kind = _KINDS[name].__name__ if name in _KINDS else name
    return ValueError(f"`schedule` must hold the arguments of {kind}, got {arguments}: {error}")
