"""Where a layer's output has the batch: so that each example's response acts on its own part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The batch in a layer's output.

    Attributes:
        axis: the axis with one entry per example; sequence-first networks have it at 1.
        fold: number of rows of axis 0 that belong to one example, such as windows or frames.
        interleaved: whether these rows are one block per example; else each block has one row of every example.
    """

    axis: int = 0
    fold: int = 1
    interleaved: bool = True

    def to_front(self, tensor: Tensor) -> Tensor:
        """The tensor with the batch as axis 0."""
        return tensor if self.axis == 0 else tensor.movedim(self.axis, 0)

    def back(self, tensor: Tensor) -> Tensor:
        """The inverse of `to_front`."""
        return tensor if self.axis == 0 else tensor.movedim(0, self.axis)

    def spread(self, rows: Tensor) -> Tensor:
        """Row changes (B, k), one row for each row of axis 0."""
        if self.fold == 1 or rows.shape[0] == 1:
            return rows
        return rows.repeat_interleave(self.fold, 0) if self.interleaved else rows.repeat(self.fold, 1)


#: The batch is axis 0, as PyTorch's layers expect it.
FRONT = Layout()


def find_layout(shapes: Sequence[tuple[int, tuple[int, ...]]], last: int) -> Layout | None:
    """The layout that fits all outputs of a layer, or None.

    Args:
        shapes: pairs of a batch size and the shape of an output, for at least two batch sizes.
        last: number of axes at the end that hold the layer's channels or features.
    """
    if all(shape and shape[0] == batch for batch, shape in shapes):
        return FRONT
    dims = min(len(shape) for _, shape in shapes)
    for axis in range(1, dims - last):
        if all(shape[axis] == batch for batch, shape in shapes):
            return Layout(axis=axis)
    folds = {divmod(shape[0], batch) if shape else (0, 1) for batch, shape in shapes}
    if len(folds) == 1:
        fold, rest = folds.pop()
        return Layout(fold=fold) if fold > 0 and rest == 0 else None
    return None
