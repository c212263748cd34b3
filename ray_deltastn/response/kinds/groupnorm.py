"""Group normalisation: the affine weight and bias change per channel."""

import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_channels, ones


def apply(layer: nn.GroupNorm, x: Tensor, weight: Tensor | None) -> Tensor:
    """γ x̂, where x̂ is x normalised over groups of channels."""
    return F.group_norm(x, layer.num_groups, weight, None, layer.eps)


GROUPNORM = LayerKind(types=(nn.GroupNorm,), apply=apply, place=on_channels, initialise=ones, rows="element")
