"""Weights that a network gives to `F.linear` or `F.embedding` itself, instead of calling their layer.

A mode sees each call of these functions. If the weight is one of those that move, it adds the change that the layer's
rule gives: (Uδ) ⊙_row (W_resp x). So tied output layers and projections by functions move as layers do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ray_deltastn.response.layout import Layout
from ray_deltastn.response.passes import Part


@dataclass(frozen=True)
class Use:
    """How a parameter moves in functions.

    Attributes:
        part: its direction and its row changes.
        rows: what a row is, see `LayerKind`.
        layout: which rows of axis 0 belong to an example.
    """

    part: Part
    rows: str
    layout: Layout


class Functions(TorchFunctionMode):
    """Inside, `F.linear` and `F.embedding` use displaced weights.

    Args:
        uses: how parameters move, by their `id`.
        linearised: whether changes go to the tangent.
    """

    def __init__(self, uses: Mapping[int, Use], linearised: bool) -> None:
        super().__init__()
        self.uses = uses
        self.linearised = linearised

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Add the change to the output of a call."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.linear:
            return self._linear(output, *args, **kwargs)
        if func is F.embedding:
            return self._embedding(output, *args, **kwargs)
        return output

    def _linear(self, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        changes: list[Tensor] = []
        use = self.uses.get(id(weight))
        if use is not None:
            x = fwAD.unpack_dual(input).primal if self.linearised else input
            if use.rows == "feature":  # the weight of an embedding, whose rows are inputs here
                changes.append(F.linear(x * _placed(use, x), use.part.direction))
            else:
                out = F.linear(x, use.part.direction)
                changes.append(out * _placed(use, out))
        use = None if bias is None else self.uses.get(id(bias))
        if use is not None:
            changes.append((_placed(use, output) * use.part.direction).expand_as(output))
        return self._added(output, changes)

    def _embedding(
        self, output: Tensor, input: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        use = self.uses.get(id(weight))
        if use is None:
            return output
        out = F.embedding(input, use.part.direction, padding_idx)
        return self._added(output, [out * _placed(use, out)])

    def _added(self, output: Tensor, changes: list[Tensor]) -> Tensor:
        if not changes:
            return output
        change = (changes[0] if len(changes) == 1 else changes[0] + changes[1]).to(output.dtype)
        if not self.linearised:
            return output + change
        primal, tangent = fwAD.unpack_dual(output)
        dual: Tensor = fwAD.make_dual(primal, change if tangent is None else tangent + change)
        return dual


def _placed(use: Use, like: Tensor) -> Tensor:
    """View Uδ (B, k) as (rows, 1, …, k) for a tensor (rows, …, k)."""
    rows = use.layout.spread(use.part.rows, like.shape[0])
    return rows.view(rows.shape[0], *(1,) * (like.dim() - 2), rows.shape[1]).to(like.dtype)
