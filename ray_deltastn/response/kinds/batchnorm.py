"""Batch normalisation: the affine weight and bias change per channel."""

import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_channels, ones


def apply(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, x: Tensor, weight: Tensor) -> Tensor:
    """γ x̂, x̂ normalised as the layer does it in its present mode; running statistics stay untouched."""
    batch = layer.training or layer.running_mean is None
    mean, variance = (None, None) if batch else (layer.running_mean, layer.running_var)
    return F.batch_norm(x, mean, variance, weight, None, batch, 0.0, layer.eps)


BATCHNORM = LayerKind(
    types=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    apply=apply,
    place=on_channels,
    initialise=ones,
    rows="element",
)
