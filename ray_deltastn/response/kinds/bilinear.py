"""Bilinear layers: y_r = x₁ᵀ W_r x₂ + b_r; the matrix W_r of each output changes as a whole."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_features


def apply(layer: nn.Bilinear, x: Tensor, weight: Tensor, input2: Tensor) -> Tensor:
    """x₁ᵀ W x₂ for inputs (B, …, in₁) and (B, …, in₂)."""
    return F.bilinear(x, input2, weight)


def initialise(layer: nn.Bilinear, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp with U(−1/√in₁, 1/√in₁), as `nn.Bilinear` fills its weight."""
    bound = float(layer.in1_features) ** -0.5
    direction.uniform_(-bound, bound, generator=generator)


BILINEAR = LayerKind(types=(nn.Bilinear,), apply=apply, place=on_features, initialise=initialise)
