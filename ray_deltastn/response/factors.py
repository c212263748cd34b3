"""Factors of the weights of a module in one call, such as a mask of DropConnect.

| symbol                 | code      | shape           | meaning                                             |
|------------------------|-----------|-----------------|-----------------------------------------------------|
| M                      | `factors` | the parameter's | factor of a weight, the same for the whole batch    |
| M ⊙ (W₀ + Uδ ⊙ W_resp) |           |                 | the weight in a displaced pass: M scales W_resp too |
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
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
        with _kept_in_place(module):
            return functional_call(module, scaled, args, kwargs)
    finally:
        del module.__dict__[_KEY]


@contextmanager
def _kept_in_place(module: nn.Module) -> Iterator[None]:
    """Context of a call of a recurrent layer with other weights, which leaves the memory of its parameters as it is.

    Without it, such a layer on a GPU would move all its parameters into a new buffer in each call, and captured steps
    look for them at their old place. It would also keep the weights of the call, with their graph.
    """
    if not isinstance(module, nn.RNNBase):
        yield
        return
    own = module.__dict__
    before = {name: own[name] for name in ("_flat_weights", "_flat_weight_refs")}
    if module.weight_hh_l0.is_cuda:
        _silence()
    own["flatten_parameters"] = _nothing
    try:
        yield
    finally:
        del own["flatten_parameters"]
        own.update(before)


def _nothing() -> None:
    pass


@cache
def _silence() -> None:
    """Ignore cuDNN's warning of weights that are not in one buffer; a filter for each call would repeat other ones."""
    warnings.filterwarnings("ignore", "RNN module weights are not part")


def factors_of(module: nn.Module) -> Mapping[str, Tensor]:
    """The factors in the current call of a module, by the name of the parameter."""
    found: Mapping[str, Tensor] = module.__dict__.get(_KEY, {})
    return found
