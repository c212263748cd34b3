"""Fewer operations in a recorded graph, with the same numbers to the bit.

Automatic differentiation makes views of views, forms the same product twice, and copies tensors that nobody changes.
Each costs a call, and some cost a sweep over a weight.

| left out                                                | in its place |
|---------------------------------------------------------|--------------|
| a view with the memory, shape and strides of another    | the other    |
| an operation on the same arguments as an earlier one    | the earlier  |
| a copy with the type and strides of its source          | the source   |

The second needs that nothing is written in between, the last two that nobody writes into the result.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)
_SILENT = ("aten", "prims")


def acts(node: fx.Node) -> bool:
    """Whether an operation does more than make its result: it writes, or it draws random numbers."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload):
        return node.is_impure()
    return _writes(node) or torch.Tag.nondeterministic_seeded in op.tags


def _writes(node: fx.Node) -> bool:
    """Whether an operation may change a tensor; batch normalisation does, although its schema says no."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload):
        return False
    return op.namespace not in _SILENT or "batch_norm" in op.overloadpacket.__name__ or op._schema.is_mutable


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that an operation may change."""
    op: Any = node.target
    for place, argument in enumerate(op._schema.arguments):
        alias = argument.alias_info
        # Operations that do not say what they write may write into each argument.
        if not op._schema.is_mutable or (alias is not None and alias.is_write):
            given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, fx.Node))


class Memory:
    """Where the tensor of each node was when it was recorded.

    All recorded tensors must be alive until the end of the recording, so that no memory is used twice.
    """

    def __init__(self) -> None:
        self._places: dict[fx.Node, tuple[Hashable, ...]] = {}

    def note(self, node: fx.Node, value: Any) -> None:
        """Remember the memory of a node's tensor, before another operation changes its shape."""
        if isinstance(value, Tensor) and value.layout == torch.strided:
            view = (value.storage_offset(), value.shape, value.stride(), value.is_conj(), value.is_neg())
            self._places[node] = (value.untyped_storage()._cdata, value.device, value.dtype, *view)

    def storage(self, node: fx.Node) -> Hashable:
        """What all views of one tensor share; None if it is unknown."""
        return self._places[node][0] if node in self._places else None

    def place(self, node: fx.Node) -> tuple[Hashable, ...] | None:
        """What two nodes share if they are the same view; None if it is unknown."""
        return self._places.get(node)

    def alike(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether two tensors differ in nothing but their memory."""
        first, second = self.place(one), self.place(other)
        return first is not None and second is not None and (first[1:3], first[4:]) == (second[1:3], second[4:])


def simplify(graph: fx.Graph, memory: Memory) -> None:
    """Leave out operations whose result is there already; see the module for which.

    Args:
        graph: the recorded operations, changed in place.
        memory: where their tensors were.
    """
    operations = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    # Some operations change the shape of a tensor while others use it: then everything stays.
    if not any(torch.Tag.inplace_view in node.target.tags for node in operations):
        _replace(graph, memory, operations)
    graph.eliminate_dead_code(acts)


def _replace(graph: fx.Graph, memory: Memory, operations: list[fx.Node]) -> None:
    written = {memory.storage(each) for node in operations if _writes(node) for each in _written(node)}
    outside = {memory.storage(node) for node in graph.nodes if node.op == "placeholder"}
    views: dict[Hashable, fx.Node] = {}
    results: dict[Hashable, fx.Node] = {}
    for node in graph.nodes:
        if _writes(node):
            results.clear()
        place, storage = memory.place(node), memory.storage(node)
        if place is None:
            continue
        first = views.setdefault(place, node)
        if first is node and node.op == "call_function" and storage not in written and not acts(node):
            first = results.setdefault((str(node.target), str(node.args), str(node.kwargs)), node)
            source = node.args[0] if node.target in _COPIES else None
            if first is node and isinstance(source, fx.Node) and memory.alike(node, source):
                first = node if memory.storage(source) in written | outside else source
        if first is not node:
            node.replace_all_uses_with(first)
