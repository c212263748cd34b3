"""The share of correct classes, where it is defined: which axis holds the classes, and which targets count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Targets that PyTorch's cross-entropy ignores by default.
IGNORED = -100


@dataclass(frozen=True)
class Accuracy:
    """Share of correct classes.

    Attributes:
        axis: axis of the output that holds the classes; PyTorch's cross-entropy has it at 1, language models often at
            the end.
        ignored: target that does not count, besides negative ones.
    """

    axis: int = 1
    ignored: int = IGNORED

    def __call__(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Number of correct classes and of targets that count; output (B, C, …) or (B, …, C), target (B, …)."""
        counts = (target >= 0) & (target != self.ignored)
        correct = (output.argmax(self.axis) == target) & counts
        return correct.sum().double(), counts.sum().double()


def find_accuracy(output: Any, target: Any, loss: Callable[[Tensor, Tensor], Tensor]) -> Accuracy | None:
    """How to count correct classes for outputs and targets of these shapes; None if the task is no classification.

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
        a for a in dict.fromkeys((1, output.dim() - 1)) if (*output.shape[:a], *output.shape[a + 1 :]) == target.shape
    ]
    ignored = _ignored(loss)
    if len(axes) == 2:
        given = loss(output, target).mean()
        axes = [axis for axis in axes if _is_cross_entropy(given, output.movedim(axis, 1), target, ignored)]
    return Accuracy(axes[0], ignored) if len(axes) == 1 else None


def _is_cross_entropy(given: Tensor, output: Tensor, target: Tensor, ignored: int) -> bool:
    return bool(torch.isclose(F.cross_entropy(output, target, ignore_index=ignored), given.to(output.dtype), rtol=1e-4))


def _ignored(loss: Any) -> int:
    """The target that a loss ignores: an attribute of PyTorch's modules, or a keyword of a partial function."""
    for place in (getattr(loss, "ignore_index", None), getattr(loss, "keywords", {}).get("ignore_index")):
        if isinstance(place, int):
            return place
    return IGNORED
