"""A rate of dropout that a model reads as a number, such as the `p` of a layer that it gives to fused attention.

Many libraries do not call their dropout layers. They write

    F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
    F.dropout(weights, p=self.dropout.p, training=self.training)

A tuned rate has one value per example, so it cannot be a number. `Rate` stands in its place. Inside `ReadRates` the
functions of `WITH_RATE` call the layer of a `Rate` that they get, and all other functions refuse it.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from ray_deltastn.response.attention import attention


class Rate(float):
    """The rate of a tuned dropout layer where a function expects a number.

    In evaluation mode it is 0. In training mode a comparison has the answer that each rate between 0 and 1 has, and
    arithmetic is refused.

    Args:
        layer: the dropout layer.
        value: the number that a function gets which is called outside `ReadRates`.
    """

    layer: nn.Module

    def __new__(cls, layer: nn.Module, value: float = 0.0) -> Rate:
        """Make a rate."""
        made = super().__new__(cls, value)
        made.layer = layer
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.layer,)

    def _number(self, what: str) -> float:
        if self.layer.training:
            raise _refused(self.layer, what)
        return 0.0

    def _compared(self, other: Any, compare: Callable[[Any, Any], bool]) -> bool:
        if not self.layer.training:
            return compare(0.0, other)
        if not isinstance(other, float | int) or 0 < other < 1:
            raise _refused(self.layer, f"a comparison with {other!r}")
        return compare(0.5, other)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, float | int) and self._compared(other, operator.eq))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: Any) -> bool:
        return self._compared(other, operator.lt)

    def __le__(self, other: Any) -> bool:
        return self._compared(other, operator.le)

    def __gt__(self, other: Any) -> bool:
        return self._compared(other, operator.gt)

    def __ge__(self, other: Any) -> bool:
        return self._compared(other, operator.ge)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return self.layer.training

    def __float__(self) -> float:
        return self._number("`float`")

    def __repr__(self) -> str:
        return f"Rate({self.layer!r})"

    def __neg__(self) -> float:
        return -self._number("arithmetic")

    def __add__(self, other: Any) -> Any:
        return self._number("arithmetic") + other

    def __sub__(self, other: Any) -> Any:
        return self._number("arithmetic") - other

    def __rsub__(self, other: Any) -> Any:
        return other - self._number("arithmetic")

    def __mul__(self, other: Any) -> Any:
        return self._number("arithmetic") * other

    def __truediv__(self, other: Any) -> Any:
        return self._number("arithmetic") / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._number("arithmetic")

    __radd__ = __add__
    __rmul__ = __mul__


class RateError(RuntimeError):
    """A model uses a tuned rate in a way that cannot have one value per example."""


def _refused(layer: nn.Module, what: str) -> RateError:
    return RateError(
        f"the rate of {layer} must be used by a call of the layer, `F.dropout` or `F.scaled_dot_product_attention`, "
        f"got {what}; it has one value per example"
    )


def _dropout(layer: nn.Module, input: Tensor, p: Any = None, training: bool = True, inplace: bool = False) -> Tensor:
    out: Tensor = layer(input) if training else input
    return out


def _torch_dropout(layer: nn.Module, input: Tensor, p: Any, train: bool) -> Tensor:
    return _dropout(layer, input, training=train)


def _attention(layer: nn.Module, *args: Any, dropout_p: Any = None, **kwargs: Any) -> Tensor:
    return attention(*args, **kwargs, drop=layer)


#: Functions that can have a tuned rate, and what they then compute.
WITH_RATE: dict[Any, Callable[..., Tensor]] = {
    F.dropout: _dropout,
    F.dropout1d: _dropout,
    F.dropout2d: _dropout,
    F.dropout3d: _dropout,
    torch.dropout: _torch_dropout,
    F.scaled_dot_product_attention: _attention,
}


def _body(func: Any) -> Callable[..., Any]:
    """A function of `F` that does not ask the modes again, so that the modes see the functions that it calls."""
    names = {**func.__globals__, "has_torch_function": lambda _: False}
    body = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


class ReadRates(TorchFunctionMode):
    """Inside, a function that gets the `Rate` of a layer calls this layer.

    Attributes:
        seen: whether a function got a rate.
    """

    seen = False

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a call that has a rate.

        Raises:
            RateError: if the function cannot have a rate per example.
        """
        kwargs = kwargs or {}
        rate = next((given for given in (*args, *kwargs.values()) if isinstance(given, Rate)), None)
        if rate is None:
            return func(*args, **kwargs)
        self.seen = True
        if func is F.multi_head_attention_forward:  # of `nn.MultiheadAttention`; it calls a function of `WITH_RATE`
            with self:
                return _body(func)(*args, **kwargs)
        if func not in WITH_RATE:
            raise _refused(rate.layer, f"a call of `{resolve_name(func) or func}`")
        return WITH_RATE[func](rate.layer, *args, **kwargs)
