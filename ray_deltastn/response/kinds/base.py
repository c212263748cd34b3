"""What a layer kind must say for its parameters to respond to hyperparameters.

| symbol            | code         | shape           | meaning                                          |
|-------------------|--------------|-----------------|--------------------------------------------------|
| W_resp, b_resp    | `direction`  | the parameter's | what each row of the parameter moves along       |
| Uδ, Vδ            | `row_change` | (B or 1, k)     | how far, one factor per example and row          |
| (Uδ) ⊙_row W_resp |              |                 | change of the parameter (3.14), never formed     |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


def _never(layer: Any) -> str | None:
    return None


@dataclass(frozen=True)
class LayerKind:
    """How one kind of layer turns a change of its parameters into a change of its output.

    Since the change acts on rows, and a row of the parameter makes one channel or feature of the output,
    the output changes by place(Uδ) ⊙ apply(W_resp, x) + place((Vδ) ⊙ b_resp).

    Args:
        types: module classes of this kind; a subclass counts if it keeps `forward`.
        apply: `apply(layer, x, weight)`, the layer's output for another weight and no bias; linear in `weight`. A layer
            with elementwise weights takes None for all ones.
        place: `place(layer, rows, output)` views `rows` (B, k) so that it scales the output's channels or features.
        initialise: `initialise(layer, direction, generator)` fills W_resp as the layer fills its own weight.
        rows: what a row of the weight is: an index of its first axis (`"output"`), of its second axis
            (`"feature"`, as in an embedding), or every element (`"element"`, as in a normalisation layer).
        tangent: `tangent(layer, x, ẋ, applied)`, directional derivative of the layer in x at W₀, where PyTorch's own
            rule costs more; `applied` is `apply(layer, x, None)` for elementwise weights. None leaves it to PyTorch.
        refuse: gives the reason why this very layer cannot respond, or None.
    """

    types: tuple[type[nn.Module], ...]
    apply: Callable[[Any, Tensor, Any], Tensor]
    place: Callable[[Any, Tensor, Tensor], Tensor]
    initialise: Callable[[Any, Tensor, torch.Generator | None], None]
    rows: Literal["output", "feature", "element"] = "output"
    tangent: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor] | None = None
    refuse: Callable[[Any], str | None] = _never


def on_channels(layer: Any, rows: Tensor, output: Tensor) -> Tensor:
    """View (B, k) as (B, k, 1, …): the rows are channels of an output (B, k, …)."""
    return rows.view(*rows.shape, *(1,) * (output.dim() - 2))


def on_features(layer: Any, rows: Tensor, output: Tensor) -> Tensor:
    """View (B, k) as (B, 1, …, 1, k): the rows are the last axis of an output (B, …, k)."""
    return rows.view(rows.shape[0], *(1,) * (output.dim() - 2), rows.shape[1])


def on_normalized_shape(layer: Any, rows: Tensor, output: Tensor) -> Tensor:
    """View (B, k) as (B, 1, …, *normalized_shape): the rows are the elements of the normalised axes."""
    shape = layer.normalized_shape
    return rows.view(rows.shape[0], *(1,) * (output.dim() - 1 - len(shape)), *shape)


def uniform_fan_in(layer: Any, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp as `nn.Linear` and `nn.Conv*d` fill their weights: U(±1/√fan_in)."""
    bound = direction[0].numel() ** -0.5
    direction.uniform_(-bound, bound, generator=generator)


def ones(layer: Any, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp as normalisation layers fill their weights: with ones."""
    direction.fill_(1.0)
