"""Errors for data, a model and a loss that do not fit together: one line that says which of them is at fault."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ray_deltastn.methods import Loss, Objective
from ray_deltastn.response.carried import CarriedError
from ray_deltastn.response.trees import described, mapped, rows, taken, tensors
from ray_deltastn.training.warned import RunWarning

#: What PyTorch raises for tensors that do not fit.
MISFITS = (RuntimeError, IndexError, ValueError)
#: The start of PyTorch's warning of a loss whose output and targets differ in shape.
_BROADCAST = "Using a target size"
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
        except CarriedError:
            raise
        except (*MISFITS, TypeError, AttributeError, KeyError) as error:
            if _lacks_memory(error):
                raise
            if objective.carries:
                raise _refused_state(objective, x, split, error) from error
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
        with warnings.catch_warnings():
            warnings.filterwarnings("error", _BROADCAST)
            return function(output, y)
    except UserWarning as warning:
        if not str(warning).startswith(_BROADCAST):
            raise
        if not (isinstance(output, Tensor) and isinstance(y, Tensor)) or output.dim() == y.dim():
            return function(output, y)
        sizes = ", ".join(map(str, (-1, *output.shape[1:])))
        hint = f"; use `y.reshape({sizes})`" if output.numel() == y.numel() else ""
        raise ValueError(
            f"`{what}` must get targets of `{split}` that have the shape of the output, got an output of "
            f"{_about(output)} and targets of {_about(y)}, which PyTorch would broadcast to all pairs of examples{hint}"
        ) from None
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


def require_gradient(function: Loss, what: str, output: Any, y: Any) -> None:
    """Refuse a loss without a gradient in the output of the network.

    Args:
        function: the loss.
        what: its name in the task.
        output: output of the network (B, …).
        y: targets (B, …).

    Raises:
        ValueError: if the loss has none.
    """

    def leaf(t: Tensor) -> Tensor:
        return t.detach().requires_grad_() if t.is_floating_point() else t

    with torch.enable_grad():
        loss = function(mapped(leaf, output), y)
    if not loss.requires_grad:
        raise ValueError(
            f"`{what}` must have a gradient in the output of the model, got a loss without one, such as one of "
            "`output.detach()` or of `output.argmax(1)`"
        )


def require_outer_loss(function: Loss, what: str, output: Any, y: Any, method: str) -> None:
    """Refuse a loss that the network computes itself under a method that linearises the network.

    The output of the linearised network is linear in Θδ. If the loss is part of it, the loss is linear, too: it has no
    minimum in Θ. A loss that is part of the output only to some extent, such as a term that balances experts, gives a
    warning.

    Args:
        function: the loss.
        what: its name in the task.
        output: output of the network (B, …).
        y: targets (B, …).
        method: name of the method.

    Raises:
        TypeError: if the loss depends on nothing but numbers () of the output.
    """
    if not any(_is_number(t) for t in tensors(output)):
        return
    from_numbers, from_rest = (_known(function, _unknown(output, numbers), y) for numbers in (False, True))
    if from_rest:
        return
    reason = (
        f"`{what}` must be computed from the outputs of the examples for '{method}', which linearises the network, got "
        "a number that the network computes itself, such as `output.loss`"
    )
    if from_numbers:
        raise TypeError(f"{reason}; compute the loss from the scores, or use 'centered-stn'")
    warnings.warn(f"{reason}, as a part of the loss; the response sees this part as linear", RunWarning, stacklevel=5)


def _is_number(t: Tensor) -> bool:
    return t.dim() == 0 and t.is_floating_point()


def _unknown(output: Any, numbers: bool) -> Any:
    """The output with NaN in place of its numbers (), or of all other real tensors."""

    def erased(t: Tensor) -> Tensor:
        return torch.full_like(t, torch.nan) if t.is_floating_point() and _is_number(t) == numbers else t

    return mapped(erased, output)


def _known(function: Loss, output: Any, y: Any) -> bool:
    """Whether the loss is finite."""
    try:
        return bool(function(output, y).isfinite().all())
    except MISFITS:  # some losses refuse NaN
        return False


def _refused(rule: str, nested: Any, error: Exception) -> TypeError:
    """An error about nested tensors, in one line."""
    return TypeError(f"{rule}, got {described(nested)}: {first_line(error)}")


def _refused_state(objective: Objective, x: Any, split: str, error: Exception) -> ValueError:
    """An error of a model that carries state, in one line."""
    kind = next((p.dtype for p in objective.model.parameters() if p.is_floating_point()), torch.float32)
    other = next((t for t in tensors(x[1]) if t.is_floating_point() and t.dtype != kind), None)
    if other is not None:
        return ValueError(
            f"`{split}` must hold a state of the type of the model, {_type(kind)}, got {_type(other.dtype)}; convert "
            f"it with `state.to({kind})`"
        )
    shapes = ", ".join(_about(t) for t in tensors(x[1]))
    return ValueError(
        f"`model(tokens, state)` must accept the inputs of `{split}`, got tokens of {_about(x[0])}, a state of "
        f"{shapes} and this error: {first_line(error)}"
    )


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
