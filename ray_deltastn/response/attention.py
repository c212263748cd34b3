"""Attention in elementary operations, which have all derivatives.

PyTorch's fused kernels have no forward-mode rule. The kernel that has one gives NaN in a backward pass through the
tangent if a query may attend to no key, such as a padded word of a text that is padded at its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: Any = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    drop: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """drop(softmax(s QKᵀ + mask)) V, with the arguments of `F.scaled_dot_product_attention`.

    Args:
        query: Q (B, …, L, E).
        key: K (B, …, S, E).
        value: V (B, …, S, F).
        attn_mask: what is added to the scores, or True where a query may attend; it broadcasts over (B, …, L, S).
        dropout_p: rate of dropout if there is no `drop`.
        is_causal: whether query i attends to the keys 0 … i only.
        scale: s; the default is 1/√E.
        enable_gqa: whether several heads of Q share a head of K and V.
        drop: dropout of the weights (B, …, L, S).

    Returns:
        The output (B, …, L, F). It is 0 for a query that may attend to no key.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = scores.softmax(-1) if attn_mask is None else _masked(scores, attn_mask)
    if drop is not None:
        weights = drop(weights)
    elif dropout_p:
        weights = F.dropout(weights, dropout_p)
    return weights.to(value.dtype) @ value


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Weights under a mask; those of a query without keys are 0."""
    if mask.dtype == torch.bool:
        closed = ~mask
        scores = scores.masked_fill(closed, -math.inf)
    else:
        closed = mask.isneginf()
        scores = scores + mask
    none = closed.all(-1, keepdim=True)
    # A softmax of −∞ alone is NaN, and a NaN that is replaced afterwards still has NaN derivatives.
    return scores.masked_fill(none, 0.0).softmax(-1).masked_fill(none, 0.0)
