"""Where a layer's output has the batch: so that each example's response acts on its own part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The batch in a layer's output.

    Several rows of axis 0 may belong to one example, such as windows or frames; their number may differ between calls.

    Attributes:
        axis: the axis with one entry per example; sequence-first networks have it at 1.
        interleaved: whether the rows of an example are one block; else each block has one row of every example.
        shared: the output has no batch, as that of a table of positions, and its change brings one: as axis 0, which is
            new (`"new"`) or has the size 1 (`"first"`). The output must broadcast over the batch where it is used.
    """

    axis: int = 0
    interleaved: bool = True
    shared: Literal["", "new", "first"] = ""

    def to_front(self, tensor: Tensor) -> Tensor:
        """The tensor with the batch as axis 0."""
        return tensor if self.axis == 0 else tensor.movedim(self.axis, 0)

    def batched(self, output: Tensor) -> Tensor:
        """An output of a layer with an axis for the batch; a shared one gets it with the size 1."""
        return output[None] if self.shared == "new" else output

    def back(self, tensor: Tensor) -> Tensor:
        """The inverse of `to_front`."""
        return tensor if self.axis == 0 else tensor.movedim(0, self.axis)

    def spread(self, rows: Tensor, length: int) -> Tensor:
        """Values of the examples (B or 1, k) for an axis of this length, or unchanged if they do not divide it."""
        count = rows.shape[0]
        if self.shared or count == 1 or length == count or length % count:
            return rows
        return rows.repeat_interleave(length // count, 0) if self.interleaved else rows.repeat(length // count, 1)

    def owners(self, count: int, length: int) -> list[int]:
        """The example to which each entry of an axis of this length belongs."""
        fold = length // count
        return [i // fold if self.interleaved else i % count for i in range(length)]


#: The batch is axis 0, as PyTorch's layers expect it.
FRONT = Layout()


def layouts(shapes: Sequence[tuple[int, tuple[int, ...]]], last: int) -> list[Layout]:
    """The layouts that fit the shapes of all outputs of a layer, the most likely first.

    Args:
        shapes: pairs of a batch size and the shape of an output, for at least two batch sizes.
        last: number of axes at the end that hold the layer's channels or features.
    """
    if all(shape and shape[0] and shape[0] % batch == 0 for batch, shape in shapes):
        whole = all(shape[0] == batch for batch, shape in shapes)
        return [FRONT] if whole else [FRONT, Layout(interleaved=False)]
    dims = min(len(shape) for _, shape in shapes)
    whole_axes = [axis for axis in range(1, dims - last) if all(shape[axis] == batch for batch, shape in shapes)]
    folded = [
        axis
        for axis in range(1, dims - last)
        if axis not in whole_axes and all(shape[axis] and shape[axis] % batch == 0 for batch, shape in shapes)
    ]
    return [Layout(axis) for axis in whole_axes] + [Layout(axis, blocks) for axis in folded for blocks in (True, False)]
