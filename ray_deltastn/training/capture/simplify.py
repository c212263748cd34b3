"""Fewer operations in a recorded graph, with the same numbers to the bit.

Automatic differentiation makes views of views, forms the same product twice, and copies tensors that nobody changes.
Each costs a call, and some cost a sweep over a weight.

| left out                                             | in its place    | unless something is written |
|------------------------------------------------------|-----------------|-----------------------------|
| a view with the memory, shape and strides of another | the other one   | (they are one tensor)       |
| an operation on the same arguments as an earlier one | the earlier one | between them, or into them  |
| a copy with the type and strides of its source       | the source      | into one of them            |
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

#: Operations that write although their schema says no.
_SECRET = ("batch_norm", "rrelu")
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)
_DETACH = torch.ops.aten.detach_.default
_SILENT = ("aten", "prims")


def acts(node: fx.Node) -> bool:
    """Whether an operation does more than make its result: it writes, or it draws random numbers."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload):
        return node.is_impure()
    return _writes(node) or torch.Tag.nondeterministic_seeded in op.tags


def _writes(node: fx.Node) -> bool:
    """Whether an operation may change a tensor."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload):
        return False
    secret = any(name in op.overloadpacket.__name__ for name in _SECRET)
    return secret or op.namespace not in _SILENT or op._schema.is_mutable


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The tensors that an operation may change."""
    op: Any = node.target
    if op.namespace not in _SILENT:  # its results may be memory that it uses again
        yield from (node, *node.users)
    for place, argument in enumerate(op._schema.arguments):
        alias = argument.alias_info
        # Operations that do not say what they write may write into each argument.
        if not op._schema.is_mutable or (alias is not None and alias.is_write):
            given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, fx.Node))


class Memory:
    """Where the tensor of each node was when it was recorded.

    Attributes:
        reshaped: whether an operation has given another shape or other memory to a tensor.
    """

    def __init__(self) -> None:
        self.reshaped = False
        self._places: dict[fx.Node, tuple[Hashable, ...]] = {}
        self._first: dict[Hashable, fx.Node] = {}
        self._alive: list[Any] = []  # so that no memory is used twice

    def note(self, node: fx.Node, value: Any, before: fx.Node | None = None) -> None:
        """Remember the memory of a node's tensor; `before` is the node that the same tensor had until now."""
        if isinstance(value, Tensor) and value.layout == torch.strided:
            storage = value.untyped_storage()
            self._alive.append(storage)
            view = (value.storage_offset(), value.shape, value.stride(), value.is_conj(), value.is_neg())
            self._places[node] = (storage._cdata, value.device, value.dtype, *view)
            self._first.setdefault(storage._cdata, node)
            self.reshaped = self.reshaped or (before is not None and self.place(before) != self.place(node))

    def storage(self, node: fx.Node) -> Hashable:
        """What all views of one tensor share; None if it is unknown."""
        return self._places[node][0] if node in self._places else None

    def made_inside(self, node: fx.Node) -> bool:
        """Whether an operation made the memory of a node."""
        return self._first[self.storage(node)].op != "placeholder" if node in self._places else False

    def place(self, node: fx.Node) -> tuple[Hashable, ...] | None:
        """What two nodes share if they are the same view; None if it is unknown."""
        return self._places.get(node)

    def alike(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether two tensors differ in nothing but their memory."""
        first, second = self.place(one), self.place(other)
        return first is not None and second is not None and first[1:] == second[1:]


def simplify(graph: fx.Graph, memory: Memory) -> None:
    """Leave out operations whose result is there already; see the module for which.

    Args:
        graph: the recorded operations, changed in place.
        memory: where their tensors were.
    """
    operations = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    # Some operations change the shape of a tensor while others use it: then everything stays.
    reshaped = any(torch.Tag.inplace_view in node.target.tags for node in operations if node.target is not _DETACH)
    if not reshaped and not memory.reshaped:
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
        # An input with the memory of a result came back without an operation. A replay would not see it change.
        if place is None or (node.op == "placeholder" and memory.made_inside(node)):
            continue
        first = views.setdefault(place, node)
        if first is node and node.op == "call_function" and storage not in written and not acts(node):
            first = results.setdefault((str(node.target), str(node.args), str(node.kwargs)), node)
            source = node.args[0] if node.target in _COPIES else None
            if first is node and isinstance(source, fx.Node) and memory.alike(node, source):
                first = node if memory.storage(source) in written | outside else source
        if first is not node:
            node.replace_all_uses_with(first)
            views[place] = first
