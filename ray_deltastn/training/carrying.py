"""Checks of a task on `Segments` before the first step: the state that it carries, and the tokens of its splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ray_deltastn.methods import Objective
from ray_deltastn.response.carried import CarriedError, matched
from ray_deltastn.response.trees import tensors
from ray_deltastn.task import Task
from ray_deltastn.training.misfits import MISFITS
from ray_deltastn.training.segments import SegmentStream
from ray_deltastn.training.streams import Stream


def carried(task: Task, streams: Sequence[Stream]) -> bool:
    """Whether the model of a task carries state from minibatch to minibatch.

    Args:
        task: the task.
        streams: its splits.

    Raises:
        ValueError: if the splits carry different states, or a task on segments has an augmentation.
    """
    found = {s.name: _about(s) for s in streams}
    first = streams[0]
    for one in streams:
        if isinstance(one, SegmentStream) and task.augmentations:
            raise ValueError(
                f"`augment` must be empty for `Segments`, whose inputs are tokens, got "
                f"{type(task.augmentations[0]).__name__} with '{one.name}'"
            )
        if found[one.name] != found[first.name]:
            raise ValueError(
                f"all splits must carry the same state, got {found[one.name]} for '{one.name}' and "
                f"{found[first.name]} for '{first.name}'"
            )
    return first.carries


def _about(stream: Stream) -> str:
    if not (isinstance(stream, SegmentStream) and stream.carries):
        return "none"
    leaves = tensors(stream.segments.state)
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in leaves)


def versions(objective: Objective, x: Any) -> list[int]:
    """How often each tensor of the state in the inputs has been changed in place; empty without a state."""
    return [t._version for t in tensors(x[1])] if objective.carries else []


def require_carried(objective: Objective, x: Any, before: list[int]) -> None:
    """Refuse a state that the model does not return as it gets it, or changes in place, after a pass over `x`.

    Args:
        objective: the objective, with its model.
        x: the inputs.
        before: the `versions` of the state before the pass.

    Raises:
        CarriedError: see `matched`; or if the model has changed the state of its inputs.
    """
    if not objective.carries:
        return
    matched(x[1], objective.left)
    if versions(objective, x) != before:
        raise CarriedError(
            "`model` must leave the state that it gets as it is, got a state that has been changed in place; return a "
            "new one"
        )


def require_known_tokens(objective: Objective, streams: Sequence[Stream | None]) -> None:
    """Refuse a token that an embedding of the tokens does not have; on a GPU a step could not say so.

    Args:
        objective: the objective, with its model in evaluation mode.
        streams: the splits.

    Raises:
        ValueError: with the split and the embedding.
    """
    found = [s for s in streams if isinstance(s, SegmentStream)]
    if not found:
        return
    x, _ = found[0].first()
    for name, count in _embeddings(objective, x).items():
        for one in found:
            if one.segments.largest >= count:
                raise ValueError(
                    f"`{one.name}` must hold tokens below {count:,}, the number of embeddings of layer '{name}', got "
                    f"{one.segments.largest:,}"
                )


def _embeddings(objective: Objective, x: Any) -> dict[str, int]:
    """The layers that embed the tokens, by name, with the number of their embeddings."""
    # All tokens are 0: on a GPU an unknown one would stop the process.
    tokens = torch.zeros_like(x[0] if objective.carries else x)
    found: dict[str, int] = {}

    def note(module: nn.Module, args: tuple[Any, ...], name: str) -> None:
        given = args[0] if args and isinstance(args[0], Tensor) else None
        if given is not None and (given is tokens or given._base is tokens):
            found[name] = int(module.num_embeddings)  # type: ignore[arg-type]

    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: note(m, args, name))
        for name, module in objective.model.named_modules()
        if isinstance(getattr(module, "num_embeddings", None), int)
    ]
    try:
        with torch.no_grad():
            objective.predict((tokens, x[1]) if objective.carries else tokens, None)
    except (*MISFITS, TypeError, AttributeError, KeyError):
        pass  # the look before the first step says what is wrong
    finally:
        for handle in handles:
            handle.remove()
    return found
