"""The share of correct classes, where it is defined: which axis holds the classes, and which targets count."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Targets that PyTorch's cross-entropy ignores by default.
IGNORED = -100


@dataclass(frozen=True)
class Accuracy:
    """Share of correct classes.

    Attributes:
        axis: axis of the output that holds the classes; PyTorch's cross-entropy has it at 1, language models often at
            the end.
        ignored: target that does not count, besides negative ones.
        weighs: whether the loss is the mean over the targets that count, so that a minibatch with more of them has a
            larger weight in the loss of a split.
    """

    axis: int = 1
    ignored: int = IGNORED
    weighs: bool = field(default=False, compare=False)

    def __call__(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Number of correct classes and of targets that count; output (B, C, …) or (B, …, C), target (B, …)."""
        counts = (target >= 0) & (target != self.ignored)
        correct = (output.argmax(self.axis) == target) & counts
        return correct.sum().double(), counts.sum().double()


class _CrossEntropies(TorchFunctionMode):
    """Records the calls of PyTorch's cross-entropy: their arguments by name, and their results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[dict[str, Any], Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record a call."""
        result = func(*args, **(kwargs or {}))
        if func in (F.cross_entropy, F.nll_loss):
            bound = inspect.signature(func).bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            self.calls.append((bound.arguments, result))
        return result


def find_accuracy(output: Any, target: Any, loss: Callable[[Tensor, Tensor], Tensor]) -> Accuracy | None:
    """How to count correct classes for outputs and targets of these shapes; None if the task is no classification.

    There is none if the loss calls PyTorch's cross-entropy with other targets than these. A language model whose loss
    compares the output at one position with the target at the next is such a case.

    Args:
        output: outputs of some examples.
        target: their targets.
        loss: the loss; if two axes fit, it tells which one holds the classes.
    """
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return None
    whole = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    if not whole or not output.is_floating_point() or output.dim() != target.dim() + 1:
        return None
    axes = [
        a
        for a in dict.fromkeys((1, output.dim() - 1))
        if (*output.shape[:a], *output.shape[a + 1 :]) == target.shape and output.shape[a] > 1
    ]
    if not axes:
        return None
    with _CrossEntropies() as seen:
        given = loss(output, target)
    calls = [(call, result) for call, result in seen.calls if _same(call["target"], target)]
    if seen.calls and not calls:
        return None
    ignored = calls[0][0]["ignore_index"] if calls else _ignored(loss)
    if len(axes) == 2:
        axes = [axis for axis in axes if _is_cross_entropy(given.mean(), output.movedim(axis, 1), target, ignored)]
    weighs = any(
        call["weight"] is None and call["reduction"] == "mean" and (result is given or _equal(result, given))
        for call, result in calls
    )
    return Accuracy(axes[0], ignored, weighs) if len(axes) == 1 else None


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten()))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.isclose(one, other.to(one.dtype), rtol=1e-4, equal_nan=True).all())


def _is_cross_entropy(given: Tensor, output: Tensor, target: Tensor, ignored: int) -> bool:
    return _equal(F.cross_entropy(output, target, ignore_index=ignored), given)


def _ignored(loss: Any) -> int:
    """The target that a loss ignores: an attribute of PyTorch's modules, or a keyword of a partial function."""
    for place in (getattr(loss, "ignore_index", None), getattr(loss, "keywords", {}).get("ignore_index")):
        if isinstance(place, int):
            return place
    return IGNORED
