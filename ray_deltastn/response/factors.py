"""Factors of the weights of a module in one call, such as a mask of DropConnect.

| symbol                 | code      | shape           | meaning                                             |
|------------------------|-----------|-----------------|-----------------------------------------------------|
| M                      | `factors` | the parameter's | factor of a weight, the same for the whole batch    |
| M ⊙ (W₀ + Uδ ⊙ W_resp) |           |                 | the weight in a displaced pass: M scales W_resp too |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

_KEY = "_factors_of_weights"


def scaled_call(module: nn.Module, factors: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """The output of a module whose weights are multiplied by factors, in plain and in displaced passes.

    Args:
        module: a module with a rule for its weights, such as a linear or a recurrent layer.
        factors: name of a parameter of the module → its factor, of the same shape.
        args: positional arguments of the module.
        kwargs: keyword arguments of the module.
    """
    scaled = {name: getattr(module, name) * factor for name, factor in factors.items()}
    module.__dict__[_KEY] = factors
    try:
        return functional_call(module, scaled, args, kwargs)
    finally:
        del module.__dict__[_KEY]


def factors_of(module: nn.Module) -> Mapping[str, Tensor]:
    """The factors in the current call of a module, by the name of the parameter."""
    found: Mapping[str, Tensor] = module.__dict__.get(_KEY, {})
    return found
