"""Batch normalisation: the affine weight and bias change per channel."""

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_channels, ones

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def by_batch(layer: _BatchNorm) -> bool:
    """Whether the layer currently normalises with the statistics of the batch."""
    return layer.training or layer.running_mean is None


def apply(layer: _BatchNorm, x: Tensor, weight: Tensor | None) -> Tensor:
    """γ x̂, where x̂ is x normalised as in the layer's current mode; running statistics do not change."""
    batch = by_batch(layer)
    mean, variance = (None, None) if batch else (layer.running_mean, layer.running_var)
    return F.batch_norm(x, mean, variance, weight, None, batch, 0.0, layer.eps)


def tangent(layer: _BatchNorm, x: Tensor, x_tangent: Tensor, applied: Tensor | None) -> Tensor:
    """γ/s · (ẋ − ⟨ẋ⟩ − x̂ ⟨x̂ ẋ⟩) with batch statistics, γ/s · ẋ with running statistics; s² = variance + eps.

    PyTorch's rule gives the same result but keeps several more tensors of the size of x for the backward pass.
    """
    shape = (1, -1, *(1,) * (x.dim() - 2))
    if not by_batch(layer):
        assert layer.running_var is not None
        return x_tangent * (layer.weight * (layer.running_var + layer.eps).rsqrt()).view(shape)
    assert applied is not None
    axes = [axis for axis in range(x.dim()) if axis != 1]
    factor = layer.weight * (x.var(axes, correction=0) + layer.eps).rsqrt()
    along = (applied * x_tangent).mean(axes, keepdim=True)
    return (x_tangent - x_tangent.mean(axes, keepdim=True) - applied * along) * factor.view(shape)


def refuse(layer: _BatchNorm) -> str | None:
    """Reason to refuse synchronised normalisation in several processes: its statistics are those of all of them."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return "its statistics are those of several processes" if isinstance(layer, nn.SyncBatchNorm) and several else None


BATCHNORM = LayerKind(
    types=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    apply=apply,
    place=on_channels,
    initialise=ones,
    rows="element",
    tangent=tangent,
    refuse=refuse,
)
