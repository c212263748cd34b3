"""Layer normalisation: the affine weight and bias change per element of the normalised shape."""

import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_normalized_shape, ones


def apply(layer: nn.LayerNorm, x: Tensor, weight: Tensor | None) -> Tensor:
    """γ x̂, where x̂ is x normalised over the last axes."""
    return F.layer_norm(x, layer.normalized_shape, weight, None, layer.eps)


LAYERNORM = LayerKind(types=(nn.LayerNorm,), apply=apply, place=on_normalized_shape, initialise=ones, rows="element")
