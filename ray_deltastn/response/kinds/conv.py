"""Convolutions in one, two and three dimensions: kernels change per output channel (Eqn. E.1)."""

from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_channels, uniform_fan_in


def apply(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, weight: Tensor) -> Tensor:
    """W ∗ x with the layer's stride, padding, padding mode, dilation and groups."""
    out: Tensor = layer._conv_forward(x, weight, None)
    return out


def tangent(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, x_tangent: Tensor, applied: Tensor | None) -> Tensor:
    """W₀ẋ. PyTorch's rule would also multiply x by the weight's tangent, which is zero."""
    return apply(layer, x_tangent, layer.weight)


CONV = LayerKind(
    types=(nn.Conv1d, nn.Conv2d, nn.Conv3d), apply=apply, place=on_channels, initialise=uniform_fan_in, tangent=tangent
)
