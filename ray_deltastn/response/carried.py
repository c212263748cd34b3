"""State that a network carries from one minibatch to the next, such as the hidden state of a recurrent network.

The inputs are then a pair (inputs, state), and the network returns a pair (output, state after the pass). The leaves of
a state have the batch as axis 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ray_deltastn.response.trees import described


class CarriedError(ValueError):
    """The model does not return the state that it should."""


def divided(output: Any) -> tuple[Any, Any]:
    """What the loss gets of the output of a network that carries state, and the state after the pass.

    Raises:
        CarriedError: if the output is not a pair.
    """
    if not isinstance(output, tuple | list) or len(output) != 2:
        got = f"{len(output)} parts" if isinstance(output, tuple | list) else described(output)
        raise CarriedError(f"`model(inputs, state)` must return a pair (output, state), got {got}")
    return output[0], output[1]


def matched(before: Any, after: Any, where: str = "state") -> list[tuple[Tensor, Tensor]]:
    """Pairs of the tensors at the same places of two states.

    Args:
        before: the state that a pass got.
        after: the state that it left.
        where: name of the state, for errors.

    Raises:
        CarriedError: if they differ in structure, or in the shape or the type of a tensor.
    """
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        if before.shape != after.shape or before.dtype != after.dtype:
            raise CarriedError(
                f"`model` must return a state like the one that it gets, got {_about(after)} for `{where}` of "
                f"{_about(before)}"
            )
        return [(before, after)]
    if isinstance(before, Mapping) and isinstance(after, Mapping) and before.keys() == after.keys():
        parts = [(before[name], after[name], name) for name in before]
    elif isinstance(before, tuple | list) and isinstance(after, tuple | list) and len(before) == len(after):
        parts = [(one, other, number) for number, (one, other) in enumerate(zip(before, after, strict=True))]
    else:
        raise CarriedError(
            f"`model` must return a state like the one that it gets, got {_about(after)} for `{where}`, which is "
            f"{_about(before)}"
        )
    return [pair for one, other, name in parts for pair in matched(one, other, f"{where}[{name!r}]")]


def _about(state: Any) -> str:
    if isinstance(state, Tensor):
        return f"{str(state.dtype).removeprefix('torch.')} {tuple(state.shape)}"
    return f"{type(state).__name__} of {len(state)}" if isinstance(state, tuple | list) else described(state)
