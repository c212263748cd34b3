"""Errors for data, a model and a loss that do not fit together: one line that says which of them is at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ray_deltastn.methods import Loss, Objective
from ray_deltastn.response.trees import described, rows, taken

#: What PyTorch raises for tensors that do not fit.
MISFITS = (RuntimeError, IndexError, ValueError)
#: Largest relative difference between two equal losses, and smallest between two different ones.
_SAME, _OTHER = 1e-3, 1e-2


@contextmanager
def entered(model: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Context that records the layers that are called, by name and class; the last one has raised an error."""
    layers: list[tuple[str, str]] = []
    handles = [
        m.register_forward_pre_hook(lambda m, args, n=name: layers.append((n, type(m).__name__)))
        for name, m in model.named_modules()
    ]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def predicted(objective: Objective, x: Any, split: str) -> Any:
    """Output of the network on a few examples.

    Args:
        objective: the objective, with its model.
        x: inputs (B, …).
        split: name of the split, for the error.

    Raises:
        ValueError: if the network does not accept the inputs.
    """
    with entered(objective.model) as layers:
        try:
            return objective.predict(x, None)
        except (*MISFITS, TypeError, AttributeError, KeyError) as error:
            if _lacks_memory(error):
                raise
            if not isinstance(x, Tensor):
                raise _refused("`model` must accept its inputs", x, error) from error
            if not isinstance(error, MISFITS):
                raise
            reason, last = error, list(layers)
    kind = next((p.dtype for p in objective.model.parameters() if p.is_floating_point()), torch.float32)
    if x.dtype != kind and _works(partial(objective.predict, x.to(kind), None)):
        model = f" or the model with `model.to({x.dtype})`" if x.is_floating_point() else ""
        raise ValueError(
            f"`{split}` must hold inputs of the type of the model, {_type(kind)}, got {_type(x.dtype)}; convert the "
            f"data with `x.to({kind})`{model}"
        ) from reason
    where = f" in layer '{last[-1][0]}' ({last[-1][1]})" if last and last[-1][0] else ""
    raise ValueError(
        f"`model` must accept the inputs of `{split}`, got {_about(x)} and this error{where}: {first_line(reason)}"
    ) from reason


def lost(function: Loss, what: str, output: Any, y: Any, split: str) -> Any:
    """What a loss returns for a few examples.

    Args:
        function: the loss.
        what: its name in the task.
        output: output of the network (B, …).
        y: targets (B, …).
        split: name of the split.

    Raises:
        ValueError: if the loss does not accept them.
    """
    try:
        return function(output, y)
    except (*MISFITS, TypeError, AttributeError, KeyError) as error:
        if _lacks_memory(error):
            raise
        if not (isinstance(output, Tensor) and isinstance(y, Tensor)):
            nested = y if isinstance(output, Tensor) else output
            raise _refused(f"`{what}` must accept the output of `model` and the targets", nested, error) from error
        if not isinstance(error, MISFITS):
            raise
        for kind in (torch.int64, output.dtype):
            if y.dtype != kind and _works(partial(function, output, y.to(kind))):
                raise ValueError(
                    f"`{split}` must hold targets of type {_type(kind)} for `{what}`, got {_type(y.dtype)}; convert "
                    f"them with `y.to({kind})`"
                ) from error
        raise ValueError(
            f"`{what}` must accept the output of the model and the targets of `{split}`, got an output of "
            f"{_about(output)}, targets of {_about(y)} and this error: {first_line(error)}"
        ) from error


def require_mean(function: Loss, what: str, output: Any, y: Any, loss: Tensor) -> None:
    """Refuse a loss that is the sum of its examples' losses instead of their mean.

    The examples are split into two parts in every way. If the loss of all is always the sum of the losses of the parts,
    and not their weighted mean, it is a sum. Tensors without numbers (fake or meta tensors) are not checked.

    Args:
        function: the loss.
        what: its name in the task.
        output: output of the network (B, …).
        y: targets (B, …).
        loss: what the loss returns for them.

    Raises:
        ValueError: if the loss is a sum.
    """
    count = rows(y)
    if loss.dim() or count < 2:
        return

    def part(cut: slice) -> float:
        return float(function(taken(output, cut), taken(y, cut)))

    try:
        whole = float(loss)
        parts = [(part(slice(n)), part(slice(n, count))) for n in range(1, count)]
    except (*MISFITS, TypeError, KeyError, AttributeError):  # no numbers, or a loss that needs more examples
        return
    for size, (first, second) in enumerate(parts, 1):
        scale = abs(first) + abs(second)
        mean = (first * size + second * (count - size)) / count
        if not (abs(whole - first - second) <= _SAME * scale and abs(whole - mean) > _OTHER * scale):
            return
    raise ValueError(
        f"`{what}` must return a mean over the examples, got a sum: {whole:.4g} for {count} examples, "
        f'{parts[0][0]:.4g} for the first and {parts[0][1]:.4g} for the rest; use `reduction="mean"`'
    )


def _refused(rule: str, nested: Any, error: Exception) -> TypeError:
    """An error about nested tensors, in one line."""
    return TypeError(f"{rule}, got {described(nested)}: {first_line(error)}")


def _works(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (*MISFITS, TypeError):
        return False
    return True


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "_STATUS_ALLOC_FAILED" in str(error)


def _about(x: Tensor) -> str:
    return f"{_type(x.dtype)} {tuple(x.shape)}"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def first_line(error: Exception) -> str:
    """The first line of an error, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
