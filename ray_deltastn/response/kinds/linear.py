"""Linear layers: y = W x + b with W = W₀ + (Uδ) ⊙_row W_resp (Eqn. 3.14)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_features, uniform_fan_in


def apply(layer: nn.Linear, x: Tensor, weight: Tensor) -> Tensor:
    """W x for inputs (B, …, in)."""
    return F.linear(x, weight)


def tangent(layer: nn.Linear, x: Tensor, x_tangent: Tensor, applied: Tensor | None) -> Tensor:
    """W₀ẋ. PyTorch's rule would also multiply x by the weight's tangent, which is zero."""
    return apply(layer, x_tangent, layer.weight)


LINEAR = LayerKind(types=(nn.Linear,), apply=apply, place=on_features, initialise=uniform_fan_in, tangent=tangent)
