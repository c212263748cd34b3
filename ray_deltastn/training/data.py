"""Minibatches of the data that a task has: tensors on the training device, or what a loader gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from ray_deltastn.response.trees import described, mapped, taken, tensors
from ray_deltastn.training.loaders import LoaderStream
from ray_deltastn.training.random_state import seed_of
from ray_deltastn.training.segments import Segments, SegmentStream
from ray_deltastn.training.streams import Batch, Pair, Stream, as_pair, examples_of, once

#: Tensors up to this size are kept on the training device, in bytes.
RESIDENT_BYTES = 4 * 2**30


class TensorStream(Stream):
    """Minibatches of tensors, kept on the training device and batched there.

    Args:
        data: inputs and targets (x, y), each a tensor or nested tensors, with one entry per example.
        batch_size: examples in a minibatch.
        name: name of the split, for errors.
        device: the training device.
        seed: seed of the order.
    """

    def __init__(self, data: Batch, batch_size: int, name: str, device: torch.device, seed: int) -> None:
        super().__init__(name, device, seed)
        every = tensors(data)
        self.count = examples_of(*data, name)
        size = sum(t.numel() * t.element_size() for t in {id(t): t for t in every}.values())
        self.home = device if size <= RESIDENT_BYTES else every[0].device
        place = once(lambda t: t.to(self.home))
        self.x, self.y = (mapped(place, part) for part in data)
        self.batch_size = min(batch_size, self.count)
        self._order: Tensor | None = None

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    @property
    def smallest_batch(self) -> int:
        """Examples in the last minibatch of a pass."""
        return self.count % self.batch_size or self.batch_size

    def next(self) -> Batch:
        """The next minibatch; the last one of a pass may be smaller."""
        if self.position >= len(self):
            self.pass_number, self.position, self._order = self.pass_number + 1, 0, None
        if self._order is None:
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.pass_number))
            order = torch.randperm(self.count, generator=generator)
            # A copy from pinned memory does not make the host wait.
            pinned = order.pin_memory() if self.home.type == "cuda" else order
            self._order = pinned.to(self.home, non_blocking=True)
        chosen = self._order[self.position * self.batch_size : (self.position + 1) * self.batch_size]
        self.position += 1

        pick = once(lambda t: (t.index_select(0, chosen) if t.dim() else t).to(self.device))
        return mapped(pick, self.x), mapped(pick, self.y)

    def in_order(self) -> Iterator[Batch]:
        """One pass in the order of the data, in batches of up to 1,000 examples."""
        size = max(self.batch_size, 1000)
        for start in range(0, self.count, size):
            cut = once(partial(self._cut, start, start + size))
            yield mapped(cut, self.x), mapped(cut, self.y)

    def _cut(self, start: int, stop: int, t: Tensor) -> Tensor:
        return (t[start:stop] if t.dim() else t).to(self.device)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        super().load_state_dict(state)
        self._order = None


def stream(
    source: Any, batch_size: int, name: str, device: torch.device, seed: int, pair: Pair | None = None
) -> Stream:
    """Minibatches of a split as the user gives it.

    Args:
        source: a pair of tensors or of nested tensors, with `pair` also a mapping of tensors; a map-style or
            iterable `Dataset`, with a length; a `DataLoader` or `Segments` (which then decide on batches).
        batch_size: examples in a minibatch.
        name: name of the split, for errors.
        device: the training device.
        seed: seed of the order.
        pair: takes inputs and targets from what the source gives; None means that it gives pairs.

    Raises:
        TypeError: if the source is none of these.
        ValueError: if it is empty, has no length, or its parts do not match.
    """
    if isinstance(source, DataLoader):
        return LoaderStream(source, name, device, seed, pair)
    if isinstance(source, Segments):
        if pair is not None:
            raise ValueError(f"`batch` must be None for `Segments`, which are pairs, got a function for '{name}'")
        return SegmentStream(source, name, device)
    data = _tensors(source)
    if data is not None:
        if pair is None and (not isinstance(data, tuple) or len(data) != 2):
            got = f"{len(data)}" if isinstance(data, tuple) else described(data)
            raise ValueError(f"`{name}` must hold two tensors (x, y), got {got}")
        return TensorStream(as_pair(data, name, pair), batch_size, name, device, seed)
    if isinstance(source, Dataset) and (hasattr(source, "__len__") or not isinstance(source, IterableDataset)):
        if not hasattr(source, "__len__"):
            raise ValueError(f"`{name}` must have a length, got {type(source).__name__}")
        if len(source) == 0:
            raise ValueError(f"`{name}` must hold at least one example, got none")
        shuffle = not isinstance(source, IterableDataset)
        return LoaderStream(DataLoader(source, batch_size, shuffle=shuffle), name, device, seed, pair)
    kinds = [type(part).__name__ for part in source] if isinstance(source, tuple | list) else []
    got = f"a {type(source).__name__} of {', '.join(kinds)}" if 0 < len(kinds) < 4 else type(source).__name__
    hint = "; make tensors of arrays with `torch.from_numpy`" if "ndarray" in (*kinds, got) else ""
    raise TypeError(
        f"`{name}` must be a pair of tensors, a map-style Dataset, a DataLoader or Segments, got {got}{hint}"
    )


def _tensors(source: Any) -> Any:
    """The tensors of a source that holds all its examples as tensors: a tuple, or a mapping; else None."""
    if isinstance(source, TensorDataset):
        return source.tensors
    if isinstance(source, Subset):
        whole = _tensors(source.dataset)
        chosen = torch.as_tensor(source.indices, dtype=torch.long)
        return None if whole is None else taken(whole, chosen)
    if isinstance(source, (tuple, list)) and all(tensors(part) for part in source):
        return tuple(source)
    return source if isinstance(source, Mapping) and tensors(source) else None
