"""Checks of a task on `Segments` before the first step: which state is carried, and whether the model returns it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_deltastn.methods import Objective
from ray_deltastn.response.carried import matched
from ray_deltastn.response.trees import tensors
from ray_deltastn.task import Task
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


def require_carried(objective: Objective, x: Any) -> None:
    """Refuse a state that the model does not return as it gets it, after a pass over `x`.

    Raises:
        ValueError: see `matched`.
    """
    if objective.carries:
        matched(x[1], objective.left)
