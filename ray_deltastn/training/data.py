"""Endless minibatches with a position of two integers, so that a run resumes exactly.

Each pass over the data is a function of (seed, pass number) alone; tensors live on the training device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from ray_deltastn.response.trees import described, mapped, taken, tensors
from ray_deltastn.training.random_state import isolated, seed_of

#: Tensors up to this size are kept on the training device, in bytes.
RESIDENT_BYTES = 4 * 2**30

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
    """

    def __init__(self, name: str, device: torch.device, seed: int) -> None:
        self.name = name
        self.device = device
        self.seed = seed
        self.pass_number = 0
        self.position = 0

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
        """One pass for evaluation."""
        raise NotImplementedError

    def first(self, count: int = 4) -> Batch:
        """A few examples, for a look at their types and shapes."""
        x, y = taken(next(iter(self.in_order())), slice(count))
        return x, y

    def state_dict(self) -> dict[str, int]:
        """Position in the data."""
        return {"pass_number": self.pass_number, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position."""
        self.pass_number, self.position = state["pass_number"], state["position"]


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
        lengths = sorted({len(t) for t in every if t.dim()})
        if len(lengths) != 1:
            got = " and ".join(map(str, lengths)) or "no tensor with examples"
            raise ValueError(f"`len(x) == len(y)` must hold for '{name}', got {got}")
        self.count = lengths[0]
        if self.count == 0:
            raise ValueError(f"`{name}` must hold at least one example, got none")
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

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position."""
        super().load_state_dict(state)
        self._order = None


class LoaderStream(Stream):
    """Minibatches of a `DataLoader`; a resumed run reads the current pass again up to the position."""

    def __init__(
        self, loader: DataLoader[Any], name: str, device: torch.device, seed: int, pair: Pair | None = None
    ) -> None:
        super().__init__(name, device, seed)
        self.loader = loader
        self._pair = pair
        self._iterator: Iterator[Any] | None = None
        self._evaluation_loader = copy.copy(loader)
        self._evaluation_loader._iterator = None
        try:
            self._length = len(loader)
        except TypeError:
            raise ValueError(f"`{name}` must have a length, got a loader of {type(loader.dataset).__name__}") from None
        if self._length == 0:
            raise ValueError(f"`{name}` must hold at least one minibatch, got none")

    def __len__(self) -> int:
        return self._length

    @property
    def smallest_batch(self) -> int:
        """Examples in the last minibatch; 0 if the loader does not determine it."""
        size = self.loader.batch_size
        if size is None or self.loader.drop_last:
            return size or 0
        return len(self.loader.dataset) % size or size  # type: ignore[arg-type]

    def _reseed(self, seed: int) -> None:
        for holder in (self.loader, self.loader.sampler, self.loader.batch_sampler):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)

    def _draws(self, loader: DataLoader[Any], *parts: int) -> Iterator[Any]:
        # Samplers and transforms may draw from the global generators or from the loader's generator. Each minibatch has
        # its own seed, so that nothing between two minibatches changes it. The iterator and its first minibatch share
        # one seed.
        position, batches = 0, None
        while True:
            seed = seed_of(self.seed, *parts, position)
            self._reseed(seed)
            with isolated(seed):
                if batches is None:
                    batches = iter(loader)
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch
            position += 1

    def next(self) -> Batch:
        """The next minibatch of the loader."""
        if self.position >= self._length:
            self.pass_number, self.position, self._iterator = self.pass_number + 1, 0, None
        if self._iterator is None:
            self._iterator = self._draws(self.loader, 0, self.pass_number)
            for _ in range(self.position):
                next(self._iterator)
        batch = next(self._iterator)
        self.position += 1
        return self._on_device(batch)

    def _on_device(self, batch: Any) -> Batch:
        x, y = as_pair(batch, self.name, self._pair)
        for part in (x, y):
            if not tensors(part):
                raise ValueError(f"`{self.name}` must give pairs (x, y) of tensors, got {described(part)}")

        move = once(lambda t: t.to(self.device, non_blocking=True))
        return mapped(move, x), mapped(move, y)

    def in_order(self) -> Iterator[Batch]:
        """One pass over the loader, the same each time."""
        # Persistent workers serve one iterator at a time, so evaluation uses a copy of the loader with its own workers.
        for batch in self._draws(self._evaluation_loader, 1):
            yield self._on_device(batch)

    def first(self, count: int = 4) -> Batch:
        """A few examples, read in this process: no workers start for them."""
        loader = self._evaluation_loader
        if loader.num_workers == 0 or loader.batch_sampler is None:
            return super().first(count)
        seed = seed_of(self.seed, 2)
        self._reseed(seed)
        with isolated(seed):
            chosen = next(iter(loader.batch_sampler))[:count]
            return self._on_device(loader.collate_fn([loader.dataset[row] for row in chosen]))

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; the minibatches of the pass before it are read again."""
        super().load_state_dict(state)
        self._iterator = None


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


def stream(
    source: Any, batch_size: int, name: str, device: torch.device, seed: int, pair: Pair | None = None
) -> Stream:
    """Minibatches of a split as the user gives it.

    Args:
        source: a pair of tensors or of nested tensors, with `pair` also a mapping of tensors; a map-style `Dataset`; or
            a `DataLoader` (which then decides on batches).
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
    data = _tensors(source)
    if data is not None:
        if pair is None and (not isinstance(data, tuple) or len(data) != 2):
            got = f"{len(data)}" if isinstance(data, tuple) else described(data)
            raise ValueError(f"`{name}` must hold two tensors (x, y), got {got}")
        return TensorStream(as_pair(data, name, pair), batch_size, name, device, seed)
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        if not hasattr(source, "__len__"):
            raise ValueError(f"`{name}` must have a length, got {type(source).__name__}")
        if len(source) == 0:
            raise ValueError(f"`{name}` must hold at least one example, got none")
        return LoaderStream(DataLoader(source, batch_size, shuffle=True), name, device, seed, pair)
    raise TypeError(
        f"`{name}` must be a pair of tensors, a map-style Dataset or a DataLoader, got {type(source).__name__}"
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
