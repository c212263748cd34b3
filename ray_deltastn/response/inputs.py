"""The inputs of a layer that responds through a hook: the first, in which its rule is written, and the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

from torch import Tensor, nn

from ray_deltastn.response.layout import Layout


def first_of(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first argument of a layer's `forward`, by position or by name."""
    x: Tensor = args[0] if args else kwargs[_first_name(type(layer).forward, tuple(kwargs))]
    return x


def others_of(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """All arguments but the first."""
    if args or not kwargs:
        return args[1:], kwargs
    first = _first_name(type(layer).forward, tuple(kwargs))
    return (), {name: value for name, value in kwargs.items() if name != first}


@cache
def _first_name(forward: Callable[..., Any], names: tuple[str, ...]) -> str:
    return next((name for name in signature(forward).parameters if name in names), names[0])


def alike(layout: Layout, x: Tensor, other: Tensor) -> Tensor:
    """Another input with the batch as axis 0, if it has the batch where the first input has it."""
    same = other.dim() > layout.axis and other.shape[: layout.axis + 1] == x.shape[: layout.axis + 1]
    return layout.to_front(other) if same else other
