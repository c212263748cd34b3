"""Functions without a right forward-mode rule, in elementary operations.

A linearised pass computes tangents J_yw Θδ, and its backward pass their derivatives in Θ. Both must be what the
backward pass of the network gives. For some functions PyTorch has no forward-mode rule, or one without a backward pass.
Other rules divide by a number that is zero at a point where the backward rule gives 0, a subgradient:

| function                     | point         | here                                                    |
|------------------------------|---------------|---------------------------------------------------------|
| ‖x‖ₚ and what divides by it  | x = 0         | ‖x′‖ₚ with x′ = 1 where x = 0, then 0                   |
| √x, x^p with 0 < p < 1       | x = 0         | the same; a mask before it hides the infinite slope     |
| standard deviation           | equal entries | the root of the variance                                |
| distances, similarities      | equal vectors | norms of differences, products of normalised vectors    |

Packing sequences and weighted bags of words have no forward-mode rule at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ray_deltastn.response.attention import attention


class Elementary(TorchFunctionMode):
    """Inside, the functions of `ELEMENTARY` are computed by elementary operations.

    Attributes:
        seen: whether one was called.
    """

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a call."""
        kwargs = kwargs or {}
        replacement = ELEMENTARY.get(func)
        found = NotImplemented if replacement is None else replacement(*args, **kwargs)
        if found is NotImplemented:
            return func(*args, **kwargs)
        self.seen = True
        return found


def _hardsigmoid(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return (x / 6 + 0.5).clamp(0.0, 1.0)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    shape = [1, -1, *[1] * (input.dim() - 2)] if input.dim() > 1 else [-1]
    return torch.where(input > 0, input, input * weight.view(shape))


def _root(x: Tensor, power: float = 0.5) -> Tensor:
    """x^power with the derivative 0 at zero."""
    zero = x == 0
    safe = x.masked_fill(zero, 1.0)
    return (safe.sqrt() if power == 0.5 else safe.pow(power)).masked_fill(zero, 0.0)


def _sqrt(input: Tensor, *, out: None = None) -> Any:
    return _root(input) if out is None else NotImplemented


def _pow(input: Any, exponent: Any, *, out: None = None) -> Any:
    whole = not isinstance(input, Tensor) or isinstance(exponent, Tensor | complex) or out is not None
    return NotImplemented if whole or not 0 < exponent < 1 else _root(input, float(exponent))


def _arc(function: Callable[[Tensor], Tensor], input: Tensor, *, out: None = None) -> Any:
    if out is not None:
        return NotImplemented
    bound = input.abs() == 1
    return torch.where(bound, function(input.detach()), function(input.masked_fill(bound, 0.0)))


def _atan2(input: Tensor, other: Tensor, *, out: None = None) -> Any:
    if out is not None:
        return NotImplemented
    zero = (input == 0) & (other == 0)
    return torch.where(
        zero, torch.atan2(input.detach(), other.detach()), torch.atan2(input, other.masked_fill(zero, 1))
    )


def _sinc(input: Tensor, *, out: None = None) -> Any:
    zero = input == 0
    x = input.masked_fill(zero, 1.0) * math.pi
    return (x.sin() / x).masked_fill(zero, 1.0) if out is None else NotImplemented


def _cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None, out: None = None) -> Any:
    parts = (input if dtype is None else input.to(dtype)).unbind(dim)
    return torch.stack(list(accumulate(parts, torch.mul)), dim) if parts and out is None else NotImplemented


def _std(*args: Any, **kwargs: Any) -> Any:
    return NotImplemented if kwargs.get("out") is not None else _root(torch.var(*args, **kwargs))


def _std_mean(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(*args, **kwargs)
    return _root(variance), mean


def _vector_norm(
    x: Tensor,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: None = None,
) -> Any:
    """‖x‖ of an order above zero along some axes, with the derivative 0 at the zero vector."""
    if out is not None or not ord > 0:
        return NotImplemented
    x = x if dtype is None else x.to(dtype)
    if not x.dim():
        return x.abs()
    dims = tuple(range(x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    zero = (x == 0).all(dims, keepdim=True)
    norm = torch.linalg.vector_norm(x.masked_fill(zero, 1.0), ord, dims, keepdim=True).masked_fill(zero, 0.0)
    return norm if keepdim else norm.squeeze(dims)


def _norm(
    input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, out: None = None, dtype: Any = None
) -> Any:
    if p == "nuc" or out is not None:
        return NotImplemented
    return _vector_norm(input, 2 if p in ("fro", None) else p, dim, keepdim, dtype=dtype)


def _linalg_norm(
    A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, out: None = None, dtype: Any = None
) -> Any:
    axes = A.dim() if dim is None else 1 if isinstance(dim, int) else len(dim)
    if out is not None or not (ord is None or (ord == "fro" and axes == 2) or (axes == 1 and not isinstance(ord, str))):
        return NotImplemented  # a norm of matrices
    return _vector_norm(A, 2 if ord in ("fro", None) else ord, dim, keepdim, dtype=dtype)


def _matrix_norm(
    A: Tensor, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: Any = None, out: None = None
) -> Any:
    return _vector_norm(A, 2, dim, keepdim, dtype=dtype, out=out) if ord == "fro" else NotImplemented


def _normalize(input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: None = None) -> Any:
    norm = NotImplemented if out is not None else _vector_norm(input, p, dim, keepdim=True)
    return norm if norm is NotImplemented else input / norm.clamp_min(eps)


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    x1, x2 = torch.broadcast_tensors(x1, x2)
    one, other = (x / _vector_norm(x, 2, dim, keepdim=True).clamp_min(eps) for x in (x1, x2))
    similarity: Tensor = (one * other).sum(dim)
    return similarity


def _dist(input: Tensor, other: Tensor, p: float = 2) -> Any:
    return _vector_norm(input - other, p)


def _pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    return _vector_norm(x1 - x2 + eps, p, -1, keepdim)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Any:
    return _vector_norm(x1[..., :, None, :] - x2[..., None, :, :], p, -1)


def _pdist(input: Tensor, p: float = 2.0) -> Any:
    one, other = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _vector_norm(input.index_select(0, one) - input.index_select(0, other), p, -1)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    others = tuple(axis for axis in range(v.dim()) if axis != dim)  # `torch.norm_except_dim` has no rule for `vmap`
    return v * (g / (_vector_norm(v, 2, others, keepdim=True) if others else v.abs()))


def _lp_pool(
    pool: Callable[..., Tensor],
    axes: int,
    input: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> Any:
    if not 0 < norm_type < math.inf:
        return NotImplemented
    mean = pool(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
    size = kernel_size**axes if isinstance(kernel_size, int) else math.prod(kernel_size)
    return _root(torch.sign(mean) * torch.relu(torch.abs(mean)) * size, 1.0 / norm_type)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Any:
    # Without a mask each query may attend to a key, and PyTorch's rule is right.
    return NotImplemented if attn_mask is None else attention(query, key, value, attn_mask, *args, **kwargs)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Weighted sums of rows of a table; without weights of the rows nothing has a tangent."""
    if per_sample_weights is None or max_norm is not None:
        return NotImplemented
    words = F.embedding(input, weight) * per_sample_weights[..., None]
    if padding_idx is not None:
        words = words.masked_fill((input == padding_idx)[..., None], 0.0)
    if input.dim() == 2:
        return words.sum(1)
    assert offsets is not None
    starts = offsets[:-1] if include_last_offset else offsets
    bag = torch.searchsorted(starts, torch.arange(len(input), device=input.device), right=True) - 1
    return words.new_zeros(len(starts), weight.shape[1]).index_add(0, bag, words)


def _pack_padded_sequence(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Step after step, the sequences that have it; they are sorted by decreasing length."""
    steps = torch.arange(int(lengths[0]))
    alive = steps[:, None] < lengths.cpu()  # (T, B)
    step, sequence = (index.to(input.device) for index in alive.nonzero(as_tuple=True))
    return (input[sequence, step] if batch_first else input[step, sequence]), alive.sum(1)


#: A function and its replacement, which returns `NotImplemented` for arguments that need none.
ELEMENTARY: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    F.glu: _glu,
    F.scaled_dot_product_attention: _attention,
    F.prelu: _prelu,
    torch.sqrt: _sqrt,
    torch.Tensor.sqrt: _sqrt,
    torch.pow: _pow,
    torch.Tensor.pow: _pow,
    torch.Tensor.__pow__: _pow,
    torch.atan2: _atan2,
    torch.Tensor.atan2: _atan2,
    torch.sinc: _sinc,
    torch.cumprod: _cumprod,
    torch.Tensor.cumprod: _cumprod,
    torch.std: _std,
    torch.Tensor.std: _std,
    torch.std_mean: _std_mean,
    torch.norm: _norm,
    torch.Tensor.norm: _norm,
    torch.linalg.norm: _linalg_norm,
    torch.linalg.vector_norm: _vector_norm,
    torch.linalg.matrix_norm: _matrix_norm,
    F.normalize: _normalize,
    F.cosine_similarity: _cosine_similarity,
    torch.dist: _dist,
    torch.Tensor.dist: _dist,
    F.pairwise_distance: _pairwise_distance,
    torch.cdist: _cdist,
    F.pdist: _pdist,
    torch._weight_norm: _weight_norm,
    F.embedding_bag: _embedding_bag,
    torch._VF._pack_padded_sequence: _pack_padded_sequence,
    F.lp_pool1d: partial(_lp_pool, F.avg_pool1d, 1),
    F.lp_pool2d: partial(_lp_pool, F.avg_pool2d, 2),
    F.lp_pool3d: partial(_lp_pool, F.avg_pool3d, 3),
    **{
        own: partial(_arc, function)
        for function, names in ((torch.acos, ("acos", "arccos")), (torch.asin, ("asin", "arcsin")))
        for name in names
        for own in (getattr(torch, name), getattr(torch.Tensor, name))
    },
}
