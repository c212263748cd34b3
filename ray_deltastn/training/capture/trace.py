"""The tensor operations of a computation as a `torch.fx` graph, which replays them without the rest of Python.

On a CPU, modules, hooks, autograd and optimisers take most of the time of a small network's train step: in each step
they choose the same hundred operations again. A graph holds these operations. A replay makes the tensors of the
computation again, and reads the present values of all other tensors (weights, buffers, inputs). It does not repeat what
Python did between the operations. So compare the first replay with the computation itself, on other inputs.

Why not PyTorch's `make_fx`: it takes explicit generators since PyTorch 2.13 only, records numbers that are read from
weights and buffers as constants without an error, and takes several times as long for a capture. This module relies on
`TorchDispatchMode`, `tree_map` and `OpOverload._schema`, which are not documented as public.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ray_deltastn.training.capture.simplify import Memory, simplify

#: Operations for which PyTorch's own binding takes other arguments than the dispatcher.
_UNLIKE = ("index_put", "index_put_", "binary_cross_entropy_with_logits")
#: Tags of operations whose result, or its shape, may decide what Python does next.
_READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
#: Types of arguments that a graph holds as constants; all other arguments are inputs of the graph.
_WRITTEN = (bool, int, float, str, type(None), torch.dtype, torch.layout, torch.device, torch.memory_format)


class Trace(TorchDispatchMode):
    """Records the operations that are called inside it; each is executed as usual.

    Attributes:
        reason: why the computation cannot be repeated; empty if it can.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reason = ""
        self._graph = fx.Graph()
        self._nodes: dict[int, fx.Node] = {}
        self._memory = Memory()
        self._alive: list[Any] = []  # kept, so that no `id` is used twice
        self._inputs: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute an operation and record it."""
        kwargs = kwargs or {}
        called, taken = func, args
        if func is torch.ops.aten.lift_fresh.default:  # `torch.tensor(2.0)`, which the computation may change
            called, taken = torch.ops.aten.clone.default, (args[0].clone(),)
        given = tree_map(self._argument, (taken, kwargs))
        out = func(*args, **kwargs)
        self.reason = self.reason or _refusal(func, (args, kwargs), out)
        if not self.reason and func.namespace != "profiler":
            self._keep(out, self._graph.call_function(called, *given))
        return out

    def _argument(self, value: Any) -> Any:
        if isinstance(value, _WRITTEN):
            return value
        if id(value) not in self._nodes:
            node = self._nodes[id(value)] = self._first(f"c{len(self._inputs)}")
            self._memory.note(node, value)
            self._alive.append(value)
            self._inputs.append(value.detach() if isinstance(value, Tensor) else value)
            return node
        return self._nodes[id(value)]

    def _first(self, name: str) -> fx.Node:
        with self._graph.inserting_before(None):
            return self._graph.placeholder(name)

    def _keep(self, out: Any, node: fx.Node) -> None:
        if isinstance(out, Tensor):
            self._memory.note(node, out, self._nodes.get(id(out)))
            self._nodes[id(out)] = node
            self._alive.append(out)
        elif isinstance(out, list | tuple):
            for index, part in enumerate(out):
                self._keep(part, self._graph.call_function(operator.getitem, (node, index)))

    def player(self, result: Tensor) -> Callable[[], Tensor]:
        """A function that calls the operations again and returns the new value of `result`.

        Args:
            result: a tensor that the computation made.
        """
        graph = self._graph
        graph.output(self._argument(result))
        simplify(graph, self._memory)
        for node in graph.nodes:
            node.target = _direct(node.target)
        play = fx.GraphModule(torch.nn.Module(), graph).forward
        inputs = self._inputs[::-1]  # each new placeholder was put before the others

        def replay() -> Tensor:
            # Some kernels prepare for a backward pass only if gradients are enabled.
            with torch.inference_mode(), torch.enable_grad():
                made: Tensor = play(*inputs)
                return made

        return replay


def _refusal(func: Any, given: Any, out: Any) -> str:
    """Why an operation cannot be replayed; empty if it can."""
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    if name.startswith("index"):  # with indices that are whole numbers the shape is known
        reads = any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
    else:
        reads = any(tag in func.tags for tag in _READS)
    if reads:
        return f"it reads numbers from a tensor ({name})"
    tensors += [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    return f"it has sparse tensors ({name})" if any(t.layout != torch.strided for t in tensors) else ""


def _direct(target: Any) -> Any:
    """The fastest binding of an operation: a call through `torch.ops` takes longer than PyTorch's own bindings."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return target
    name = target.overloadpacket.__name__
    if name in _UNLIKE:
        return target
    function, method = getattr(torch, name, None), getattr(torch.Tensor, name, None)
    if isinstance(function, types.BuiltinFunctionType):
        return function
    return method if isinstance(method, types.MethodDescriptorType) else target
