"""Embeddings, alone and in bags: the table changes per feature, so all words share the same k factors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_features


def apply(layer: nn.Embedding, x: Tensor, weight: Tensor) -> Tensor:
    """Rows of the table (B, …, k) for indices x (B, …)."""
    return F.embedding(x, weight, layer.padding_idx)


def apply_bag(
    layer: nn.EmbeddingBag,
    x: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """Sums or means of rows of the table, (B, k), for indices x (B, n), or (N,) with the offsets of B bags."""
    return F.embedding_bag(
        x,
        weight,
        offsets,
        mode=layer.mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=layer.include_last_offset,
        padding_idx=layer.padding_idx,
    )


def initialise(layer: nn.Embedding | nn.EmbeddingBag, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp with N(0, 1), as `nn.Embedding` fills its table; the row of the padding index is zero."""
    direction.normal_(generator=generator)
    if layer.padding_idx is not None:
        direction[layer.padding_idx].zero_()


def refuse(layer: nn.Embedding | nn.EmbeddingBag) -> str | None:
    """Reason to refuse a layer: `max_norm` rewrites the table in `forward`; a maximum is not linear in the table."""
    if layer.max_norm is not None:
        return "`max_norm` rewrites the weight in forward"
    return '`mode="max"` is not linear in the weight' if getattr(layer, "mode", "") == "max" else None


EMBEDDING = LayerKind(
    types=(nn.Embedding,), apply=apply, place=on_features, initialise=initialise, rows="feature", refuse=refuse
)

EMBEDDING_BAG = LayerKind(
    types=(nn.EmbeddingBag,), apply=apply_bag, place=on_features, initialise=initialise, rows="feature", refuse=refuse
)
