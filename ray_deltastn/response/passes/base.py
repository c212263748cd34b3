"""The interface of modules that compute their output as a whole while their weights are displaced.

A hook at a layer's output is not enough for them: their output is not linear in their weights.

| symbol  | code        | shape          | meaning                                              |
|---------|-------------|----------------|------------------------------------------------------|
| W₀x     | `linear`    | (…, out)       | a linear map of an attention or recurrent module     |
| Uδ      | `rows`      | (B or 1, k)    | row changes of one parameter                         |
| Θδ      | `change`    | (B or 1, *p)   | dense change of one parameter, for each example      |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.factors import factors_of
from ray_deltastn.response.kinds.base import Rows
from ray_deltastn.response.layout import FRONT, Layout


@dataclass(frozen=True)
class Part:
    """How one parameter moves: its direction W_resp, Uδ, and the function that gives the dense change."""

    direction: Tensor
    rows: Tensor
    dense: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Moved:
    """The displaced weights of one module in one pass.

    Attributes:
        module: the module, with the weights w₀.
        parts: what moves, by the name of the parameter in the module; a parameter that does not respond is not in it.
        linearised: whether changes go to the tangent (3.13) instead of the output.
        layout: where the inputs and the output of the module have the batch.
        row_axis: for a module without a rule, the axis of its output with one index per row of its weights, or None.
    """

    module: nn.Module
    parts: dict[str, Part]
    linearised: bool
    layout: Layout = field(default=FRONT)
    row_axis: int | None = None

    def ordered(self, order: Tensor | None, layout: Layout) -> Moved:
        """The same for inputs with the examples in another order, and another layout."""
        parts = self.parts
        if order is not None:
            rows = {n: self.layout.spread(p.rows, len(order)) for n, p in parts.items()}
            parts = {n: replace(p, rows=rows[n][order] if len(rows[n]) > 1 else rows[n]) for n, p in parts.items()}
        return replace(self, parts=parts, layout=layout)

    def scaled(self) -> Moved:
        """The same with the factors of the weights in this call, which also scale their directions."""
        factors = factors_of(self.module)
        if not factors.keys() & self.parts.keys():
            return self
        own = {n: replace(p, direction=p.direction * factors[n]) for n, p in self.parts.items() if n in factors}
        return replace(self, parts={**self.parts, **own})

    def linear(self, x: Tensor, weight: str, bias: str | None, rows: slice = slice(None)) -> Tensor:
        """W x + b for inputs (…, in) with the batch where the layout says, with displaced weights.

        Args:
            x: inputs; in a linearised pass they may have a tangent.
            weight: name of W.
            bias: name of b; a name of no parameter means no bias.
            rows: outputs that are used, as attention uses a part of one matrix for its queries.
        """
        W = parameter(self.module, weight)[rows]
        b = None if bias is None else _found(self.module, bias)
        b = None if b is None else b[rows]
        primal, tangent = fwAD.unpack_dual(x) if self.linearised else (x, None)
        y = F.linear(primal, W, b)
        changes: list[Tensor] = []
        if weight in self.parts:
            part = self.parts[weight]
            out = F.linear(primal, part.direction[rows])
            changes.append(out * self.placed(part.rows[:, rows], out))
        if bias is not None and bias in self.parts:
            part = self.parts[bias]
            changes.append(self.placed(part.rows[:, rows] * part.direction[rows], y).expand_as(y))
        if not self.linearised:
            return y + sum(changes) if changes else y
        if tangent is not None:
            changes.append(F.linear(tangent, W))
        if not changes:
            return y
        total = changes[0] if len(changes) == 1 else torch.stack(torch.broadcast_tensors(*changes)).sum(0)
        dual: Tensor = fwAD.make_dual(y, total.to(y.dtype))
        return dual

    def change(self, name: str) -> Tensor:
        """Θδ of a parameter, (B or 1, *shape); in a linearised pass it is zero and has the tangent Θδ."""
        part = self.parts[name]
        dense = part.dense(part.rows, part.direction)
        if not self.linearised:
            return dense
        dual: Tensor = fwAD.make_dual(torch.zeros_like(dense), dense)
        return dual

    def vector(self, name: str) -> Tensor:
        """w₀ + Θδ of a vector of features, (B or 1, features)."""
        p = parameter(self.module, name)
        return p.reshape(1, -1) + self.change(name).flatten(1) if name in self.parts else p.reshape(1, -1)

    def placed(self, rows: Tensor, output: Tensor, row_axis: int = -1) -> Tensor:
        """View (B, k) so that it broadcasts over an output with the batch where the layout says, k on `row_axis`."""
        axis = self.layout.axis
        spread = self.layout.spread(rows, output.shape[axis]) if len(rows) > 1 else rows
        shape = [1] * output.dim()
        shape[axis], shape[row_axis] = spread.shape
        return spread.reshape(shape).to(output.dtype)


def parameter(module: nn.Module, name: str) -> Tensor:
    """A parameter by its dotted name."""
    found = _found(module, name)
    assert found is not None, name
    return found


def _found(module: nn.Module, name: str) -> Tensor | None:
    *path, last = name.split(".")
    found: Any = getattr(module.get_submodule(".".join(path)), last, None)  # a parametrised weight is no parameter
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ModulePass:
    """How one kind of module computes its output as a whole while its weights are displaced.

    Args:
        types: module classes of this kind. A subclass counts if it does not override `forward`.
        parameters: `parameters(module)` returns the names of its parameters that may respond, with what a row is.
        forward: `forward(module, moved, *args, **kwargs)` returns what the module's `forward` returns.
        initialise: `initialise(module, name, direction, generator)` fills W_resp as the module initialises its weight.
        features: number of axes at the end of the output that hold features.
    """

    types: Sequence[type[nn.Module]]
    parameters: Callable[[Any], dict[str, Rows]]
    forward: Callable[..., Any]
    initialise: Callable[[Any, str, Tensor, torch.Generator | None], None]
    features: int = 1

    def run(self, module: nn.Module, moved: Moved, *args: Any, **kwargs: Any) -> Any:
        """The output of a module in one call, with the factors that its weights have in it."""
        return self.forward(module, moved.scaled(), *args, **kwargs)
