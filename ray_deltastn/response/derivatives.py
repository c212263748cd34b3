"""Two derivatives of each part of a response that must be equal: the oracle's, and the one that methods use.

For s = ⟨u, f(x)⟩ with a random u, for each example and each row r of a parameter:

| symbol              | code     | how                                                                            |
|---------------------|----------|--------------------------------------------------------------------------------|
| ⟨∂s/∂W_r, W_resp,r⟩ | `oracle` | backward through the network without displacement                              |
| ∂s/∂(Uδ)_r          | `ours`   | backward through the displaced network, or through the tangent if linearised   |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from ray_deltastn.response.response import Response
from ray_deltastn.response.slots import Slot
from ray_deltastn.response.trees import rows, tensors

#: Largest relative error of a part, and largest error as a share of the largest part: rounding in float32.
RELATIVE, ABSOLUTE = 1e-2, 1e-5

Predict = Callable[[Any], Any]


@dataclass(frozen=True)
class Oracle:
    """What the derivatives must be.

    Attributes:
        u: a random u for each output, (B, …).
        along: ⟨∂s/∂W_r, W_resp,r⟩ of each parameter, (B or 1, k).
        unused: the parameters that the network does not use.
    """

    u: list[Tensor]
    along: dict[Slot, Tensor]
    unused: list[Slot]


def oracle(predict: Predict, x: Any, response: Response, per_example: bool) -> Oracle:
    """The derivatives of the network without displacement.

    Raises:
        ValueError: if no output has one entry per example.
    """
    parameters = [slot.parameter for slot in response.slots]
    count = rows(x)
    with _gradients_of(parameters), torch.enable_grad():
        outputs = _by_example(predict(x), count)
        if not outputs:
            raise ValueError(
                f"the output of `model` must have a tensor with one entry per example, got none for {count}"
            )
        generator = torch.Generator().manual_seed(0)
        u = [torch.randn(out.shape, generator=generator, dtype=torch.float32).to(out) for out in outputs]
        products = _products(outputs, u)
        if not products.requires_grad:
            none = {slot: torch.zeros(count if per_example else 1, 1) for slot in response.slots}
            return Oracle(u, none, list(response.slots))
        scalars = list(products) if per_example else [products.sum()]
        by_row: dict[Slot, list[Tensor]] = {slot: [] for slot in response.slots}
        used: set[Slot] = set()
        for scalar in scalars:
            found = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
            for slot, gradient in zip(response.slots, found, strict=True):
                along = slot.by_row(response.direction(slot).detach())
                own = torch.zeros_like(along) if gradient is None else slot.by_row(_dense(gradient))
                by_row[slot].append((own * along).sum(-1))
                used |= set() if gradient is None else {slot}
    unused = [slot for slot in response.slots if slot not in used]
    return Oracle(u, {slot: torch.stack(parts) for slot, parts in by_row.items()}, unused)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _by_example(output: Any, count: int) -> list[Tensor]:
    """The real tensors of an output that have one entry per example."""
    return [t for t in tensors(output) if t.dim() and t.shape[0] == count and t.is_floating_point()]


def _products(outputs: Sequence[Tensor], u: Sequence[Tensor]) -> Tensor:
    """⟨u, f(x)⟩ of each example, (B,)."""
    return torch.stack([(one * other).flatten(1).sum(1) for one, other in zip(outputs, u, strict=True)]).sum(0)


def ours(
    predict: Predict,
    x: Any,
    response: Response,
    u: list[Tensor],
    per_example: bool,
    linearised: bool,
    only: Collection[Slot] | None = None,
) -> dict[Slot, Tensor]:
    """∂s/∂(Uδ) of each parameter at δ = 0, (B or 1, k); with `only`, see `Response.displaced_rows`."""
    count = rows(x)
    changes = response.U.new_zeros(count if per_example else 1, len(response.U)).requires_grad_()
    with torch.enable_grad():
        if linearised:
            with fwAD.dual_level(), response.displaced_rows(changes, True, only):
                outputs = _by_example(predict(x), count)
                pairs = [(fwAD.unpack_dual(out).tangent, one) for out, one in zip(outputs, u, strict=True)]
        else:
            with response.displaced_rows(changes, False, only):
                pairs = list(zip(_by_example(predict(x), count), u, strict=True))
        kept = [(out, one) for out, one in pairs if out is not None and out.requires_grad]
        gradient = None
        if kept:
            total = _products(*zip(*kept, strict=True)).sum()
            (gradient,) = torch.autograd.grad(total, changes, allow_unused=True)
    found = torch.zeros_like(changes) if gradient is None else gradient
    return {slot: found[:, slot.start : slot.stop] for slot in response.slots}


def wrong(ours: Mapping[Slot, Tensor], expected: Mapping[Slot, Tensor], response: Response) -> list[Slot]:
    """The parameters whose derivatives differ by more than rounding."""
    slots = response.slots
    sizes = torch.stack([expected[slot].norm() for slot in slots]).double().tolist()
    errors = torch.stack([(ours[slot] - expected[slot]).norm() for slot in slots]).double().tolist()
    most = ABSOLUTE * max(sizes)
    relative = max(RELATIVE, 20 * torch.finfo(response.U.dtype).eps)
    return [s for s, size, error in zip(slots, sizes, errors, strict=True) if not error <= relative * size + most]


@contextmanager
def _gradients_of(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let these parameters have gradients within the context."""
    still = [p for p in parameters if not p.requires_grad]
    for p in still:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in still:
            p.requires_grad_(False)
