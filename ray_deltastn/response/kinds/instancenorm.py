"""Instance normalisation: the affine weight and bias change per channel."""

import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_channels, ones

_InstanceNorm = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d


def apply(layer: _InstanceNorm, x: Tensor, weight: Tensor | None) -> Tensor:
    """γ x̂, where x̂ is x normalised per example and channel; running statistics do not change."""
    own = layer.training or not layer.track_running_stats
    mean, variance = (None, None) if own else (layer.running_mean, layer.running_var)
    return F.instance_norm(x, mean, variance, weight, None, own, 0.0, layer.eps)


INSTANCENORM = LayerKind(
    types=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    apply=apply,
    place=on_channels,
    initialise=ones,
    rows="element",
)
