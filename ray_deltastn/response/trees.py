"""Nested inputs, targets and outputs: dictionaries, tuples, lists and dataclasses whose leaves are tensors.

Axis 0 of each tensor of inputs and targets has one entry per example. Tensors without axes, and other values, belong to
all examples.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Tree = Any


def mapped(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """The tree with `function` applied to each tensor. A mapping of an unknown kind becomes a dictionary."""
    if isinstance(tree, Tensor):
        return function(tree)

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, Mapping):
            return {name: mapped(function, inner) for name, inner in value.items()}
        if _is_data(value):
            found = copy.copy(value)
            for name in _fields(value):
                object.__setattr__(found, name, mapped(function, getattr(value, name)))
            return found
        return value

    return tree_map(leaf, tree)


def tensors(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Tensor] = []
    for value in tree_leaves(tree):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Mapping):
            found += [tensor for inner in value.values() for tensor in tensors(inner)]
        elif _is_data(value):
            found += [tensor for name in _fields(value) for tensor in tensors(getattr(value, name))]
    return found


def _is_data(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]


def rows(tree: Tree) -> int:
    """Number of examples: the length of the first tensor that has axes.

    Raises:
        ValueError: if no tensor has axes.
    """
    if isinstance(tree, Tensor) and tree.dim():
        return tree.shape[0]
    for tensor in tensors(tree):
        if tensor.dim():
            return tensor.shape[0]
    raise ValueError(f"a batch must have a tensor with one entry per example, got {described(tree)}")


def taken(tree: Tree, index: slice | Tensor) -> Tree:
    """Some examples of a batch."""
    return mapped(lambda t: t[index] if t.dim() else t, tree)


def repeated(tree: Tree, copies: int) -> Tree:
    """A batch several times behind itself."""
    return mapped(lambda t: torch.cat([t] * copies) if t.dim() else t, tree)


def joined(one: Tree, other: Tree) -> Tree:
    """The examples of two batches.

    Raises:
        ValueError: if their structures, or the types of their tensors, differ.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return {name: joined(value, other[name]) for name, value in one.items()}
    left, right = tensors(one), tensors(other)
    kinds = [[t.dtype for t in part] for part in (left, right)]
    if isinstance(one, Mapping) or kinds[0] != kinds[1]:
        types = [", ".join(str(kind).removeprefix("torch.") for kind in own) for own in kinds]
        raise ValueError(
            f"two batches must have the same parts of the same types, got {described(one)} ({types[0]}) and "
            f"{described(other)} ({types[1]})"
        )
    rest = iter(right)

    def pair(t: Tensor) -> Tensor:
        u = next(rest)
        return torch.cat([t, u.to(t.device)]) if t.dim() else t

    if isinstance(one, tuple | list) and len(one) == len(other):
        parts = [joined(a, b) for a, b in zip(one, other, strict=True)]
        return parts if isinstance(one, list) else tuple(parts)
    return mapped(pair, one)


def split(tree: Tree, parts: int) -> list[Tree]:
    """A batch in about equal parts, as `Tensor.tensor_split` divides it."""
    if isinstance(tree, Tensor):
        return list(tree.tensor_split(parts))
    ends = [len(part) for part in torch.empty(rows(tree), device="meta").tensor_split(parts)]
    found, start = [], 0
    for length in ends:
        found.append(taken(tree, slice(start, start + length)))
        start += length
    return found


def called(model: nn.Module, x: Tree) -> Tree:
    """The output of a model: a mapping gives keyword arguments, a tuple or list positional ones."""
    args, kwargs = arguments(x)
    return model(*args, **kwargs)


def arguments(x: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for inputs."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if isinstance(x, tuple | list) else ((x,), {})


def described(tree: Tree) -> str:
    """Kind of a value for error messages, with its keys if it has some."""
    if isinstance(tree, Mapping):
        return f"{type(tree).__name__} with {', '.join(map(str, tree)) or 'nothing'}"
    return type(tree).__name__
