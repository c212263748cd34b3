"""The table of layer kinds that can respond. A new kind needs one file in this folder and one line in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import (
    LayerKind,
    Rows,
    on_channels,
    on_features,
    ones,
    uniform_columns,
    uniform_fan_in,
)
from ray_deltastn.response.kinds.batchnorm import BATCHNORM
from ray_deltastn.response.kinds.bilinear import BILINEAR
from ray_deltastn.response.kinds.conv import CONV
from ray_deltastn.response.kinds.convtranspose import CONV_TRANSPOSE
from ray_deltastn.response.kinds.embedding import EMBEDDING, EMBEDDING_BAG
from ray_deltastn.response.kinds.groupnorm import GROUPNORM
from ray_deltastn.response.kinds.instancenorm import INSTANCENORM
from ray_deltastn.response.kinds.layernorm import LAYERNORM
from ray_deltastn.response.kinds.linear import LINEAR
from ray_deltastn.response.kinds.others import OTHERS
from ray_deltastn.response.kinds.prelu import PRELU
from ray_deltastn.response.kinds.rmsnorm import RMSNORM

KINDS: tuple[LayerKind, ...] = (
    LINEAR,
    BILINEAR,
    CONV,
    CONV_TRANSPOSE,
    EMBEDDING,
    EMBEDDING_BAG,
    BATCHNORM,
    LAYERNORM,
    GROUPNORM,
    INSTANCENORM,
    RMSNORM,
    PRELU,
)

#: Kinds of layers of other packages, the newest first.
_registered: list[LayerKind] = []

_PLACES = {"features": on_features, "channels": on_channels}


def register_kind(
    layer: type[nn.Module],
    apply: Callable[..., Tensor],
    *,
    rows: Rows = "output",
    place: Literal["features", "channels"] = "features",
    initialise: Callable[[Any, Tensor, torch.Generator | None], None] | None = None,
    tangent: Callable[..., Tensor] | None = None,
) -> LayerKind:
    """Give a cheap rule to a layer class with a `weight` in which its output is linear, and perhaps a `bias`.

    The output of an example then changes by place(Uδ) ⊙ apply(W_resp, x) + (Vδ) ⊙ b_resp (3.14). Layers without a rule
    also respond, but each example then has its own copy of the weights. A script registers its kinds before it makes a
    task; in a cluster the module of the task does so, because it is imported in each worker.

    Args:
        layer: the class. A subclass counts if it does not override `forward`.
        apply: `apply(layer, x, weight)` returns the output for another weight and no bias, and is linear in `weight`.
            Further arguments of `forward` follow. With `rows="element"` it returns the output for a weight of ones if
            `weight` is None.
        rows: what a row of the weight is: an index of its first axis, which gives one output (`"output"`), an index of
            its second axis, which gives one output (`"feature"`), or one element (`"element"`).
        place: whether the output has the rows on its last axis (`"features"`) or on axis 1 (`"channels"`).
        initialise: `initialise(layer, direction, generator)` fills W_resp as the layer fills its weight. The default is
            ones for elements, else U(−1/√n, 1/√n) with n weights in a row.
        tangent: `tangent(layer, x, ẋ, applied)` returns the derivative in x at W₀ if PyTorch's rule costs more.

    Returns:
        The rule.

    Raises:
        TypeError: if `layer` is not a class of modules, or `apply` is not a function.
        ValueError: if `rows` or `place` is unknown.

    Example:
        >>> class Columns(nn.Module):  # its weight has the outputs on axis 1
        ...     def __init__(self, inputs, outputs):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        ...
        ...     def forward(self, x):
        ...         return x @ self.weight
        >>> kind = rd.register_kind(Columns, lambda layer, x, weight: x @ weight, rows="feature")
        >>> model = nn.Sequential(rd.Dropout("rate"), Columns(8, 3))
    """
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise TypeError(f"`layer` must be a class of modules, got {layer!r}")
    if not callable(apply):
        raise TypeError(f"`apply` must be a function, got {apply!r}")
    if rows not in ("output", "feature", "element"):
        raise ValueError(f"`rows` must be output, feature or element, got {rows!r}")
    if place not in _PLACES:
        raise ValueError(f"`place` must be {' or '.join(_PLACES)}, got {place!r}")
    default = {"output": uniform_fan_in, "feature": uniform_columns, "element": ones}[rows]
    kind = LayerKind((layer,), apply, _PLACES[place], initialise or default, rows, tangent)
    _registered.insert(0, kind)
    return kind


def kind_of(layer: nn.Module) -> LayerKind | None:
    """The kind of a layer, or None. A subclass that overrides `forward` does not have the kind of its parent."""
    for kind in (*_registered, *KINDS):
        for base in kind.types:
            if isinstance(layer, base) and type(layer).forward is base.forward:
                return kind
    return OTHERS.get(f"{type(layer).__module__}.{type(layer).__qualname__}")


__all__ = ["KINDS", "LayerKind", "kind_of", "register_kind"]
