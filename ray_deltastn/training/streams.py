"""Endless minibatches of a split with a position of two integers, and what each minibatch must hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ray_deltastn.response.trees import described, rows, taken, tensors
from ray_deltastn.training.misfits import MISFITS, first_line

#: Inputs and targets of a minibatch; both may be nested.
Batch = tuple[Any, Any]
#: Takes inputs and targets from what a loader gives.
Pair = Callable[[Any], Batch]


def once(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function, called once for each tensor: inputs and targets may share some."""
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def call(t: Tensor) -> Tensor:
        if id(t) not in found:
            found[id(t)] = t, function(t)  # the tensor stays alive, so that its id is not given to another one
        return found[id(t)][1]

    return call


class Stream:
    """Minibatches of one split, pass after pass.

    Args:
        name: name of the split, for errors.
        device: where minibatches are needed.
        seed: seed of the order.

    Attributes:
        pass_number: passes begun so far.
        position: minibatches drawn from the present pass.
        structure: structure of the first minibatch; empty if all minibatches have the same one.
        carries: whether inputs are a pair (inputs, state), see `Segments`.
        continues: whether the rows of a minibatch continue those of the one before, as segments do.
    """

    carries = False
    continues = False

    def __init__(self, name: str, device: torch.device, seed: int) -> None:
        self.name = name
        self.device = device
        self.seed = seed
        self.pass_number = 0
        self.position = 0
        self.structure = ""

    def __len__(self) -> int:
        """Minibatches in a pass."""
        raise NotImplementedError

    @property
    def smallest_batch(self) -> int:
        """Examples in the smallest minibatch; 0 if that is not known."""
        raise NotImplementedError

    def next(self) -> Batch:
        """The next minibatch (x, y), in random order, without end."""
        raise NotImplementedError

    def in_order(self) -> Iterator[Batch]:
        """One pass for evaluation. If its inputs have a state, write what a minibatch leaves into it (`carry`)."""
        raise NotImplementedError

    def weight(self, x: Any, y: Any) -> int:
        """The weight of a minibatch in the mean over a split: its number of examples."""
        return rows(x)

    @property
    def whole(self) -> Stream:
        """The minibatches with the rows of all workers."""
        return self

    def first(self, count: int = 4) -> Batch:
        """A few examples, for a look at their types and shapes."""
        x, y = taken(next(iter(self.in_order())), slice(count))
        return x, y

    def joined(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The state of the split from those of all workers."""
        return states[0]

    def state_dict(self) -> dict[str, Any]:
        """Position in the data."""
        return {"pass_number": self.pass_number, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        self.pass_number, self.position = state["pass_number"], state["position"]

    @contextmanager
    def explains(self, x: Any, y: Any) -> Iterator[None]:
        """Context of a step on a minibatch. If the step fails and the minibatch has another structure, it says so.

        Raises:
            ValueError: instead of the step's error.
        """
        try:
            yield
        except (*MISFITS, TypeError, KeyError, AttributeError) as error:
            found = structure_of(x, y)
            if isinstance(error, torch.OutOfMemoryError) or self.structure in ("", found):
                raise
            raise ValueError(
                f"all minibatches of `{self.name}` must have a structure that the model and the loss accept, got "
                f"{found} after {self.structure}, and this error: {first_line(error)}"
            ) from error


def as_pair(batch: Any, name: str, pair: Pair | None) -> Batch:
    """Inputs and targets of a batch.

    Raises:
        ValueError: if it is not a pair, and the task does not tell how to take one from it.
    """
    if pair is not None:
        return pair(batch)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else described(batch)
        raise ValueError(f"`{name}` must give pairs (x, y), got {got}; `Task(batch=…)` tells which part is the target")
    return batch[0], batch[1]


def examples_of(x: Any, y: Any, name: str, where: str = "") -> int:
    """Number of examples in inputs and targets, in which every tensor with axes has one entry per example.

    Args:
        x: inputs.
        y: targets.
        name: name of the split, for errors.
        where: what the pair is a part of, for errors.

    Raises:
        ValueError: if they hold different numbers of examples, no tensor, or no example.
    """
    counts = [list(dict.fromkeys(len(t) for t in tensors(part) if t.dim())) for part in (x, y)]
    found = sorted({count for some in counts for count in some})
    if len(found) != 1:
        got = " and ".join(map(str, found)) or "no tensor with examples"
        raise ValueError(f"`len(x) == len(y)` must hold {where}for '{name}', got {got}{_lengths(counts)}")
    for part, some in zip(("inputs", "targets"), counts, strict=True):
        if not some:
            raise ValueError(
                f"{part} must have an axis of examples {where}for '{name}', got none; a `DataLoader` with "
                "`batch_size=None` takes the elements of its data set as minibatches"
            )
    if found[0] == 0:
        raise ValueError(f"`{name}` must hold at least one example{' ' + where.strip() if where else ''}, got none")
    return found[0]


def _lengths(counts: list[list[int]]) -> str:
    """Which part has which lengths."""
    parts = [f"{part}: {', '.join(map(str, some))}" for part, some in zip("xy", counts, strict=True) if some]
    return f" ({'; '.join(parts)})" if parts else ""


def structure_of(x: Any, y: Any) -> str:
    """Kinds, types and numbers of axes of inputs and targets, as text."""
    return f"({_about(x)}; {_about(y)})"


def _about(tree: Any) -> str:
    leaves = ", ".join(f"{str(t.dtype).removeprefix('torch.')} of {t.dim()} axes" for t in tensors(tree))
    if isinstance(tree, Tensor):
        return leaves
    kind = f"dict with {', '.join(map(str, tree))}" if isinstance(tree, Mapping) else type(tree).__name__
    return f"{kind}: {leaves}"
