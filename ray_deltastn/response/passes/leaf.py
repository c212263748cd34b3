"""Any module that holds its weights itself.

| symbol                   | code      | meaning                                                              |
|--------------------------|-----------|----------------------------------------------------------------------|
| f(x_b, w₀ + (Θδ)_b)      | `forward` | each example has its own copy of the weights: vmap over b            |
| place(Uδ) ⊙ ∂_w f·W_resp | `by_row`  | the tangent, if each row of a weight computes one feature or channel |

The copies are exact for any module whose examples are independent, and take B times the memory of the weights. The
second line needs one more pass of the module for each weight. It holds for standardised or normalised rows too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ray_deltastn.response.kinds.base import Rows
from ray_deltastn.response.passes.base import ModulePass, Moved, parameter

#: Largest number of elements of the copies of one module's weights, B times the weights: 256 MiB in float32.
LARGEST = 2**26


def is_leaf(module: nn.Module) -> bool:
    """Whether a module holds weights and has no submodules, apart from activations and parametrisations of weights.

    Dropout with a rate per example is no activation: in a copy there is only one example.
    """
    inner = {id(m) for m in parametrisations(module)}
    outside = [m for m in module.modules() if m is not module and id(m) not in inner]
    own = bool(inner) or any(True for _ in module.parameters(recurse=False))
    container = isinstance(module, nn.ParameterList | nn.ParameterDict)  # never called
    return own and not container and not any(m._parameters or m._buffers or hasattr(m, "names") for m in outside)


def parametrisations(module: nn.Module) -> list[nn.Module]:
    """The modules that compute the weights of a module from its parameters."""
    if not is_parametrized(module):
        return []
    own = module.parametrizations
    assert isinstance(own, nn.ModuleDict)
    return list(own.modules())


def parameters(module: nn.Module) -> dict[str, Rows]:
    """All its weights; those with two or more axes move per index of the first."""
    return {name: rows_of(p) for name, p in module.named_parameters()}


def rows_of(p: Tensor) -> Rows:
    """What a row of a weight is if no rule says it."""
    return "output" if p.dim() > 1 and p.shape[0] > 1 else "element"


def initialise(module: nn.Module, name: str, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp with N(0, 1), which the response scales to the size of the weight."""
    direction.normal_(generator=generator)


def unsupported(module: nn.Module) -> str | None:
    """Reason why no displacement works: a hook that changes its own buffers in each training pass."""
    hooks = module._forward_pre_hooks.values()
    if any(isinstance(hook, SpectralNorm) for hook in hooks):
        return "`torch.nn.utils.spectral_norm` changes it in forward; `parametrizations.spectral_norm` responds"
    return None


def refuse(module: nn.Module) -> str | None:
    """Reason to refuse a module under a displacement per example: statistics of a batch are not those of an example."""
    buffers = {name for name, _ in module.named_buffers() if not name.startswith("parametrizations.")}
    own = {name for name in buffers if f"{name.removesuffix('_mask')}_orig" not in module._parameters}  # pruned weights
    return f"{type(module).__name__} may mix the examples of a batch: it has the buffer '{min(own)}'" if own else None


def forward(module: nn.Module, moved: Moved, *args: Any, **kwargs: Any) -> Any:
    """The output of a module with displaced weights, one displacement per example.

    Raises:
        ValueError: if the copies of the weights are too large, or no input has the batch.
    """
    if moved.linearised and moved.row_axis is not None:
        return by_row(module, moved, moved.row_axis, *args, **kwargs)
    axis = moved.layout.axis
    leaves, structure = tree_flatten((args, kwargs))
    lengths = [t.shape[axis] for t in leaves if isinstance(t, Tensor) and t.dim() > axis]
    if not lengths:
        raise ValueError(f"the inputs of {type(module).__name__} must have a tensor with the batch, got none")
    length = lengths[0]
    mine = [isinstance(t, Tensor) and t.dim() > axis and t.shape[axis] == length for t in leaves]
    dense = {name: moved.change(name) for name in moved.parts}
    changes = {name: moved.layout.spread(change.reshape(len(change), -1), length) for name, change in dense.items()}
    size = sum(change.numel() for change in changes.values())
    if size > LARGEST:
        raise ValueError(
            f"the copies of the weights of {type(module).__name__} must have at most {LARGEST:,} elements, got "
            f"{size:,} for {length} examples; give its class a rule with `rd.register_kind`"
        )
    weights = {name: parameter(module, name) for name in moved.parts}

    def one(changes: dict[str, Tensor], parts: list[Tensor]) -> Any:
        rest = iter(parts)
        own = [next(rest).unsqueeze(axis) if moves else t for t, moves in zip(leaves, mine, strict=True)]
        inputs, keywords = tree_unflatten(own, structure)
        moving = {name: w + changes[name].view(w.shape) for name, w in weights.items()}
        return tree_map(lambda t: t.squeeze(axis), functional_call(module, moving, inputs, keywords))

    parts = [t for t, moves in zip(leaves, mine, strict=True) if moves]
    with _still(module):
        in_dims = (dict.fromkeys(changes, 0), [axis] * len(parts))
        return vmap(one, in_dims=in_dims, out_dims=axis, randomness="different")(changes, parts)


def by_row(module: nn.Module, moved: Moved, row_axis: int, *args: Any, **kwargs: Any) -> Tensor:
    """The same in a linearised pass, if each row of a weight computes one index of this axis of the output."""
    with _still(module):
        primal, tangent = fwAD.unpack_dual(module(*args, **kwargs))
        inputs, keywords = tree_map(
            lambda t: fwAD.unpack_dual(t).primal if isinstance(t, Tensor) else t, (args, kwargs)
        )
        for name, part in moved.parts.items():
            along = {name: fwAD.make_dual(parameter(module, name), part.direction)}
            change = fwAD.unpack_dual(functional_call(module, along, inputs, keywords)).tangent
            if change is None:
                continue
            change = change * moved.placed(part.rows, change, row_axis)
            tangent = change if tangent is None else tangent + change
    dual: Tensor = primal if tangent is None else fwAD.make_dual(primal, tangent.to(primal.dtype))
    return dual


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Keep attributes that hooks of the module set as they are, and leave hooks of its output to the call of it."""
    attributes = dict(module.__dict__)
    module.__dict__["_forward_hooks"] = OrderedDict()
    try:
        yield
    finally:
        for name in module.__dict__.keys() - attributes.keys():
            del module.__dict__[name]
        module.__dict__.update(attributes)


LEAF = ModulePass((), parameters, forward, initialise, features=0)
