"""A computation's operations on tensors, written down while it runs and called again without the rest of Python.

On a CPU a train step of a small network spends most of its time in modules, hooks, autograd and optimisers that decide,
each time anew, upon the same hundred operations. A tape holds these, with their arguments: tensors that the computation
made itself are made again, all others (weights, buffers, inputs) are taken as they are by then. The operations are the
same and in the same order. What Python did between them is not on the tape: whoever plays one should have compared the
first play with the computation itself, on other inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations that PyTorch's own binding does not take as they are dispatched.
_UNLIKE = ("index_put", "index_put_", "binary_cross_entropy_with_logits")
#: Operations whose result, or its shape, decides what Python does next.
_READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass
class _Line:
    """One call: its text, the variables it reads and makes, and whether it does more than make them."""

    text: str
    reads: list[str]
    makes: list[str]
    acts: bool


class Tape(TorchDispatchMode):
    """Writes down the operations that are called while it is entered; each is executed as usual.

    Attributes:
        reason: why the computation cannot be repeated from the tape; empty if it can.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reason = ""
        self._lines: list[_Line] = []
        self._names: dict[tuple[Any, ...], str] = {}  # a view of memory → the variable or constant that holds it
        self._made: dict[int, str] = {}  # memory that the computation made → a variable in it
        self._constants: dict[str, Any] = {}
        self._alive: list[Any] = []  # so that no memory is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute an operation and write it down."""
        kwargs = kwargs or {}
        given_tensors = _tensors((args, kwargs))
        if not self.reason:
            name = func.overloadpacket.__name__
            if name.startswith("index"):  # with whole numbers the shape is known
                reads_numbers = any(t.dtype in (torch.bool, torch.uint8) for t in given_tensors[1:])
            else:
                reads_numbers = any(tag in func.tags for tag in _READS)
            if reads_numbers:
                self.reason = f"it reads numbers from a tensor ({name})"
            elif any(t.layout != torch.strided for t in given_tensors):
                self.reason = f"it has sparse tensors ({name})"
        if self.reason:
            return func(*args, **kwargs)
        reads: list[str] = []
        given = [self._text(value, reads) for value in args]
        given += [f"{name}={self._text(value, reads)}" for name, value in kwargs.items()]
        memories = {_memory(t) for t in given_tensors}
        outer = {memory for memory in memories if memory not in self._made}
        out = func(*args, **kwargs)
        results = _tensors(out)
        if any(t.layout != torch.strided for t in results):
            self.reason = f"it has sparse tensors ({func.overloadpacket.__name__})"
            return out
        makes: list[str] = []
        target = self._target(out, outer, makes)
        # Some operations act without saying so; a view never does.
        acts = func._schema.is_mutable or not results or any(_memory(t) not in memories for t in results)
        if makes or acts:
            call = f"{target} = {self._constant(_direct(func))}({', '.join(given)})"
            self._lines.append(_Line(call, reads, makes, acts))
        return out

    def _text(self, value: Any, reads: list[str]) -> str:
        """An argument in Python's words."""
        if isinstance(value, Tensor):
            return self._tensor(value, reads)
        if isinstance(value, list | tuple):
            parts = "".join(self._text(part, reads) + ", " for part in value)
            return f"[{parts}]" if isinstance(value, list) else f"({parts})"
        return repr(value) if value is None or isinstance(value, bool | int) else self._constant(value)

    def _tensor(self, value: Tensor, reads: list[str]) -> str:
        """The variable or constant that holds a tensor."""
        name = self._names.get(_view(value))
        if name is None:
            base = self._made.get(_memory(value))
            if base is None:
                return self._outer(value)
            # Autograd gives back what it kept as another view of the same memory.
            reads.append(base)
            place = f"{tuple(value.shape)}, {value.stride()}, {value.storage_offset()}"
            return f"{self._constant(torch.as_strided)}({base}, {place})"
        reads.append(name)
        return name

    def _outer(self, value: Tensor) -> str:
        """A tensor that the computation did not make: the same memory without a graph behind it."""
        name = self._constant(value.detach())
        self._alive.append(value)
        self._names[_view(value)] = name
        return name

    def _constant(self, value: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants[name] = value
        return name

    def _target(self, out: Any, outer: set[int], makes: list[str]) -> str:
        """What a result is assigned to: nothing for a view of memory from outside, which stays where it is."""
        if isinstance(out, list | tuple):
            return "".join(self._target(part, outer, makes) + ", " for part in out) or "_"
        if not isinstance(out, Tensor):
            return "_"
        self._alive.append(out)
        if _memory(out) in outer:
            if _view(out) not in self._names:
                self._outer(out)
            return "_"
        name = self._names.setdefault(_view(out), f"t{len(self._alive)}")
        self._made.setdefault(_memory(out), name)
        makes.append(name)
        return name

    def player(self, result: Tensor) -> Callable[[], Tensor]:
        """A function that calls the operations again and returns what `result` then is.

        Args:
            result: a tensor that the computation made.
        """
        needed: list[str] = []
        returned = self._tensor(result, needed)
        kept: list[str] = []
        done = set(needed)  # what later lines have no use for is forgotten at once, what nobody uses is not made
        for line in reversed(self._lines):
            if not line.acts and not set(line.makes) & done:
                continue
            over = dict.fromkeys(name for name in (*line.reads, *line.makes) if name not in done and name[0] == "t")
            if over:
                kept.append("del " + ", ".join(over))
            kept.append(line.text)
            done.update(line.reads, line.makes)
        source = "def play():\n    " + "\n    ".join([*reversed(kept), f"return {returned}"])
        space = dict(self._constants)
        exec(source, space)  # our own lines: calls of operations, and names of tensors
        play = space["play"]

        def replay() -> Tensor:
            # Some kernels prepare for a backward pass only where there may be one.
            with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
                made: Tensor = play()
                return made

        return replay


def _direct(func: Any) -> Callable[..., Any]:
    """The shortest way from Python to an operation: `torch.ops` takes longer than PyTorch's own bindings."""
    name = func.overloadpacket.__name__
    own: Callable[..., Any] = func._op
    if func.namespace != "aten" or name in _UNLIKE:
        return own
    return getattr(torch._C._VariableFunctions, name, None) or getattr(torch._C.TensorBase, name, None) or own


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in _tensors(part)]


def _memory(tensor: Tensor) -> int:
    return id(tensor) if tensor._is_zerotensor() else tensor.untyped_storage()._cdata


def _view(tensor: Tensor) -> tuple[Any, ...]:
    looks = tensor.dtype, tensor.is_conj(), tensor.is_neg()
    return _memory(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), looks
