"""RMS normalisation: the weight changes per element of the normalised shape."""

import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_normalized_shape, ones


def apply(layer: nn.RMSNorm, x: Tensor, weight: Tensor | None) -> Tensor:
    """γ x / rms(x)."""
    return F.rms_norm(x, list(layer.normalized_shape), weight, layer.eps)


RMSNORM = LayerKind(types=(nn.RMSNorm,), apply=apply, place=on_normalized_shape, initialise=ones, rows="element")
