"""Embeddings: the table changes per feature, so all words share the same k factors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_features


def apply(layer: nn.Embedding, x: Tensor, weight: Tensor) -> Tensor:
    """Rows of the table (B, …, k) for indices x (B, …)."""
    return F.embedding(x, weight, layer.padding_idx)


def initialise(layer: nn.Embedding, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp with N(0, 1), as `nn.Embedding` fills its table; the row of the padding index is zero."""
    direction.normal_(generator=generator)
    if layer.padding_idx is not None:
        direction[layer.padding_idx].zero_()


def refuse(layer: nn.Embedding) -> str | None:
    """Reason to refuse a layer with `max_norm`: it rewrites the table in `forward`, and a response cannot follow."""
    return "`max_norm` rewrites the weight in forward" if layer.max_norm is not None else None


EMBEDDING = LayerKind(
    types=(nn.Embedding,), apply=apply, place=on_features, initialise=initialise, rows="feature", refuse=refuse
)
