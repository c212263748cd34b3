"""Embeddings: the table changes per feature, so that all words share the k factors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_features


def apply(layer: nn.Embedding, x: Tensor, weight: Tensor) -> Tensor:
    """Rows of the table for indices (B, …)."""
    return F.embedding(x, weight, layer.padding_idx)


def initialise(layer: nn.Embedding, direction: Tensor, generator: torch.Generator | None) -> None:
    """N(0, 1) as `nn.Embedding` does, with a zero row for padding."""
    direction.normal_(generator=generator)
    if layer.padding_idx is not None:
        direction[layer.padding_idx].zero_()


def refuse(layer: nn.Embedding) -> str | None:
    """`max_norm` rewrites the table inside `forward`, which no response can follow."""
    return "`max_norm` rewrites the weight in forward" if layer.max_norm is not None else None


EMBEDDING = LayerKind(
    types=(nn.Embedding,), apply=apply, place=on_features, initialise=initialise, rows="feature", refuse=refuse
)
