"""`nn.MultiheadAttention`: the projections of queries, keys, values and outputs move per row.

| symbol       | code        | shape           | meaning                                        |
|--------------|-------------|-----------------|------------------------------------------------|
| q, k, v      |             | (B, n, T, d)    | projections for n heads of d features          |
| a            | `weights`   | (B, n, T, S)    | softmax(q kᵀ/√d + mask), after dropout         |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.response.attention import attention
from ray_deltastn.response.kinds.base import Rows
from ray_deltastn.response.layout import Layout
from ray_deltastn.response.passes.base import ModulePass, Moved

_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
_BIASES = ("in_proj_bias", "out_proj.bias", "bias_k", "bias_v")


def forward(
    module: nn.MultiheadAttention,
    moved: Moved,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What the module's `forward` returns.

    `is_causal` is a hint about `attn_mask`, which is used as it is.
    """
    batched = query.dim() == 3
    if batched and moved.layout.axis == 1:
        moved = moved.ordered(None, Layout(0, moved.layout.interleaved))
    if not batched:
        query, key, value = query[None], key[None], value[None]
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    elif not module.batch_first:
        query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    q, k, v = _projected(module, moved, query, key, value)
    if module.bias_k is not None:
        k, v = (
            torch.cat([t, _vector(moved, name, t).expand(len(t), 1, -1)], 1)
            for t, name in ((k, "bias_k"), (v, "bias_v"))
        )
    if module.add_zero_attn:
        k, v = (torch.cat([t, t.new_zeros(len(t), 1, t.shape[2])], 1) for t in (k, v))
    n = module.num_heads
    q, k, v = (t.unflatten(-1, (n, -1)).transpose(1, 2) for t in (q, k, v))  # (B, n, T or S, d)
    mask = _mask(module, attn_mask, key_padding_mask, k)
    dropout = module.dropout if module.training else 0.0
    weights = None
    if need_weights:
        scores = (q * (1 / module.head_dim) ** 0.5) @ k.transpose(-1, -2)
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = F.dropout(weights, dropout) if dropout else weights
        heads = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    elif moved.linearised and mask is not None:  # PyTorch's rule is NaN for a query that may attend to no key
        heads = attention(q, k, v, mask, dropout)
    else:
        heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    out = moved.linear(heads.transpose(1, 2).flatten(2), "out_proj.weight", "out_proj.bias")
    if not batched:
        return out[0], None if weights is None else weights[0]
    return out if module.batch_first else out.transpose(0, 1), weights


def _projected(
    module: nn.MultiheadAttention, moved: Moved, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    E = module.embed_dim
    if not module._qkv_same_embed_dim:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        parts = [moved.linear(x, name, None) for x, name in zip((query, key, value), names, strict=True)]
        if module.in_proj_bias is not None:
            biases = _vector(moved, "in_proj_bias", query).chunk(3, -1)
            parts = [part + own for part, own in zip(parts, biases, strict=True)]
        q, k, v = parts
        return q, k, v
    if query is key and key is value:
        q, k, v = moved.linear(query, "in_proj_weight", "in_proj_bias").chunk(3, -1)
        return q, k, v
    q, k, v = (
        moved.linear(x, "in_proj_weight", "in_proj_bias", slice(i * E, (i + 1) * E))
        for i, x in enumerate((query, key, value))
    )
    return q, k, v


def _vector(moved: Moved, name: str, like: Tensor) -> Tensor:
    """A vector of features for each example of `like` (B, T, features): (B or 1, 1, features)."""
    own = moved.vector(name)
    return (moved.layout.spread(own, len(like)) if len(own) > 1 else own)[:, None]


def _mask(
    module: nn.MultiheadAttention, attn_mask: Tensor | None, key_padding_mask: Tensor | None, k: Tensor
) -> Tensor | None:
    """The sum of both masks for keys (B, n, S, d), to be added to the scores (B, n, T, S)."""
    total: Tensor | None = None
    S = k.shape[-2]
    for mask in (attn_mask, key_padding_mask):
        if mask is None:
            continue
        if mask is key_padding_mask:
            mask = mask[:, None, None]
        elif mask.dim() == 3:
            mask = mask.unflatten(0, (-1, module.num_heads))
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=k.dtype).masked_fill(mask, float("-inf"))
        mask = F.pad(mask, (0, S - mask.shape[-1]))  # positions of `bias_k` and of zeros are not masked
        total = mask if total is None else total + mask
    return total


def parameters(module: nn.MultiheadAttention) -> dict[str, Rows]:
    """The projections, per row, and the biases, per element."""
    own = dict(module.named_parameters())
    found: dict[str, Rows] = {name: "output" for name in _WEIGHTS if name in own}
    return found | {name: "element" for name in _BIASES if name in own}


def initialise(module: nn.MultiheadAttention, name: str, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp as PyTorch fills the weights: Xavier's bound, and for the output that of `nn.Linear`."""
    if direction.dim() == 3:  # `bias_k` and `bias_v`
        direction.normal_(0.0, direction.numel() ** -0.5, generator=generator)
        return
    out, fan_in = direction.shape
    bound = fan_in**-0.5 if name == "out_proj.weight" else (6 / (out + fan_in)) ** 0.5
    direction.uniform_(-bound, bound, generator=generator)


ATTENTION = ModulePass((nn.MultiheadAttention,), parameters, forward, initialise)
