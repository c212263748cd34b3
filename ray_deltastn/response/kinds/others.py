"""Layers of other packages that are known by their names, so that the packages need not be imported."""

from typing import Any

from torch import Tensor

from ray_deltastn.response.kinds.base import LayerKind, on_features, uniform_columns
from ray_deltastn.response.kinds.linear import LINEAR


def apply(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """X W for a weight with the outputs on axis 1."""
    return x @ weight


def tangent(layer: Any, x: Tensor, x_tangent: Tensor, applied: Tensor | None) -> Tensor:
    """ẋ W₀."""
    return apply(layer, x_tangent, layer.weight)


#: Full name of a class → its kind.
OTHERS: dict[str, LayerKind] = {
    "transformers.pytorch_utils.Conv1D": LayerKind((), apply, on_features, uniform_columns, "feature", tangent),
    "torch_geometric.nn.dense.linear.Linear": LINEAR,
}
