"""The interface of a layer kind: the rules by which a layer's parameters respond to hyperparameters.

| symbol            | code         | shape           | meaning                                                |
|-------------------|--------------|-----------------|--------------------------------------------------------|
| W_resp, b_resp    | `direction`  | the parameter's | direction in which each row of the parameter moves     |
| Uδ, Vδ            | `row_change` | (B or 1, k)     | factor of the direction, one per example and row       |
| (Uδ) ⊙_row W_resp |              |                 | change of the parameter (3.14), never computed densely |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Rows = Literal["output", "feature", "element"]


def _never(layer: Any) -> str | None:
    return None


@dataclass(frozen=True)
class LayerKind:
    """How one kind of layer turns a change of its parameters into a change of its output.

    The change acts on rows, and each row of the parameter computes one channel or feature of the output. So the output
    changes by place(Uδ) ⊙ apply(W_resp, x) + place((Vδ) ⊙ b_resp).

    Args:
        types: module classes of this kind. A subclass counts if it does not override `forward`.
        apply: `apply(layer, x, weight)` returns the layer's output for another weight and no bias; it is linear in
            `weight`. For a layer with elementwise weights None means a weight of ones. Further arguments of the layer's
            `forward` follow.
        place: `place(layer, rows, output)` reshapes `rows` (B, k) so that it broadcasts over the output's channels or
            features.
        initialise: `initialise(layer, direction, generator)` fills W_resp as the layer initialises its weight.
        rows: what a row of the weight is: an index of the first axis (`"output"`), an index of the second axis
            (`"feature"`, for embeddings and transposed convolutions), or one element (`"element"`, for normalisation).
        tangent: `tangent(layer, x, ẋ, applied)` returns the directional derivative of the layer in x at W₀; `applied`
            is `apply(layer, x, None)` for elementwise weights. A kind gives it if PyTorch's own rule costs more. None
            means PyTorch's own rule.
        refuse: `refuse(layer)` returns the reason why the layer cannot respond, or None.
    """

    types: tuple[type[nn.Module], ...]
    apply: Callable[..., Tensor]
    place: Callable[[Any, Tensor, Tensor], Tensor]
    initialise: Callable[[Any, Tensor, torch.Generator | None], None]
    rows: Rows = "output"
    tangent: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor] | None = None
    refuse: Callable[[Any], str | None] = _never


def on_channels(layer: Any, rows: Tensor, output: Tensor) -> Tensor:
    """View (B, k) as (B, k, 1, …): the k rows are the channels of an output (B, k, …), or of each group of channels."""
    groups = output.shape[1] // rows.shape[1] if rows.shape[1] > 1 else 1
    rows = rows.repeat(1, groups) if groups > 1 else rows
    return rows.view(*rows.shape, *(1,) * (output.dim() - 2))


def on_features(layer: Any, rows: Tensor, output: Tensor) -> Tensor:
    """View (B, k) as (B, 1, …, 1, k): the k rows are the last axis of an output (B, …, k)."""
    return rows.view(rows.shape[0], *(1,) * (output.dim() - 2), rows.shape[1])


def on_normalized_shape(layer: Any, rows: Tensor, output: Tensor) -> Tensor:
    """View (B, k) as (B, 1, …, *normalized_shape): the k rows are the elements of the normalised axes."""
    shape = layer.normalized_shape
    return rows.view(rows.shape[0], *(1,) * (output.dim() - 1 - len(shape)), *shape)


def uniform_fan_in(layer: Any, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp with U(−1/√fan_in, 1/√fan_in), as `nn.Linear` and `nn.Conv*d` fill their weights."""
    bound = direction[0].numel() ** -0.5
    direction.uniform_(-bound, bound, generator=generator)


def uniform_columns(layer: Any, direction: Tensor, generator: torch.Generator | None) -> None:
    """The same for a weight whose second axis has the outputs."""
    bound = direction[:, 0].numel() ** -0.5
    direction.uniform_(-bound, bound, generator=generator)


def ones(layer: Any, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp with ones, as normalisation layers fill their weights."""
    direction.fill_(1.0)
