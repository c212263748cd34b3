"""Transposed convolutions: kernels change per output channel of a group (Eqn. E.1)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_channels, uniform_fan_in

_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def apply(layer: _Transposed, x: Tensor, weight: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
    """Wᵀ ∗ x with the layer's stride, padding, dilation and groups, and the padding that gives `output_size`."""
    axes = weight.dim() - 2
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    size = None if output_size is None else list(output_size)
    padding = layer._output_padding(x, size, layer.stride, layer.padding, layer.kernel_size, axes, layer.dilation)  # type: ignore[arg-type]
    return convolve(x, weight, None, layer.stride, layer.padding, padding, layer.groups, layer.dilation)  # type: ignore[arg-type]


def tangent(
    layer: _Transposed,
    x: Tensor,
    x_tangent: Tensor,
    applied: Tensor | None,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """W₀ẋ. PyTorch's rule would also multiply x by the weight's tangent, which is zero."""
    return apply(layer, x_tangent, layer.weight, output_size)


CONV_TRANSPOSE = LayerKind(
    types=(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    apply=apply,
    place=on_channels,
    initialise=uniform_fan_in,
    rows="feature",
    tangent=tangent,
)
