"""Endless minibatches with a position of two integers, so that a run resumes exactly.

Each pass over the data is a function of (seed, pass number) alone; tensors live on the training device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from ray_deltastn.training.random_state import isolated, seed_of

#: Tensors up to this size are kept on the training device, in bytes.
RESIDENT_BYTES = 4 * 2**30

Batch = tuple[Tensor, Tensor]


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
        x, y = next(iter(self.in_order()))
        return x[:count], y[:count]

    def state_dict(self) -> dict[str, int]:
        """Position in the data."""
        return {"pass_number": self.pass_number, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position."""
        self.pass_number, self.position = state["pass_number"], state["position"]


class TensorStream(Stream):
    """Minibatches of a pair of tensors, kept on the training device and batched there."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, name: str, device: torch.device, seed: int) -> None:
        super().__init__(name, device, seed)
        if len(x) != len(y):
            raise ValueError(f"`len(x) == len(y)` must hold for '{name}', got {len(x)} and {len(y)}")
        if len(x) == 0:
            raise ValueError(f"`{name}` must hold at least one example, got none")
        size = x.numel() * x.element_size() + y.numel() * y.element_size()
        home = device if size <= RESIDENT_BYTES else x.device
        self.x, self.y = x.to(home), y.to(home)
        self.batch_size = min(batch_size, len(x))
        self._order: Tensor | None = None

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    @property
    def smallest_batch(self) -> int:
        """Examples in the last minibatch of a pass."""
        return len(self.x) % self.batch_size or self.batch_size

    def next(self) -> Batch:
        """The next minibatch; the last one of a pass may be smaller."""
        if self.position >= len(self):
            self.pass_number, self.position, self._order = self.pass_number + 1, 0, None
        if self._order is None:
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.pass_number))
            order = torch.randperm(len(self.x), generator=generator)
            # A copy from pinned memory does not make the host wait.
            pinned = order.pin_memory() if self.x.device.type == "cuda" else order
            self._order = pinned.to(self.x.device, non_blocking=True)
        rows = self._order[self.position * self.batch_size : (self.position + 1) * self.batch_size]
        self.position += 1
        return self.x.index_select(0, rows).to(self.device), self.y.index_select(0, rows).to(self.device)

    def in_order(self) -> Iterator[Batch]:
        """One pass in the order of the data, in batches of up to 1,000 examples."""
        size = max(self.batch_size, 1000)
        for start in range(0, len(self.x), size):
            yield self.x[start : start + size].to(self.device), self.y[start : start + size].to(self.device)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position."""
        super().load_state_dict(state)
        self._order = None


class LoaderStream(Stream):
    """Minibatches of a `DataLoader`; a resumed run reads the current pass again up to the position."""

    def __init__(self, loader: DataLoader[Any], name: str, device: torch.device, seed: int) -> None:
        super().__init__(name, device, seed)
        self.loader = loader
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
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise ValueError(f"`{self.name}` must give pairs (x, y), got {got}")
        x, y = batch
        for part in (x, y):
            if not isinstance(part, Tensor):
                raise ValueError(f"`{self.name}` must give pairs (x, y) of tensors, got {type(part).__name__}")
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

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
            rows = next(iter(loader.batch_sampler))[:count]
            return self._on_device(loader.collate_fn([loader.dataset[row] for row in rows]))

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; the minibatches of the pass before it are read again."""
        super().load_state_dict(state)
        self._iterator = None


def stream(source: Any, batch_size: int, name: str, device: torch.device, seed: int) -> Stream:
    """Minibatches of a split as the user gives it.

    Args:
        source: a pair of tensors, a map-style `Dataset`, or a `DataLoader` (which then decides on batches).
        batch_size: examples in a minibatch.
        name: name of the split, for errors.
        device: the training device.
        seed: seed of the order.

    Raises:
        TypeError: if the source is none of these.
        ValueError: if it is empty, has no length, or its parts do not match.
    """
    if isinstance(source, DataLoader):
        return LoaderStream(source, name, device, seed)
    tensors = _tensors(source)
    if tensors is not None:
        if len(tensors) != 2:
            raise ValueError(f"`{name}` must hold two tensors (x, y), got {len(tensors)}")
        return TensorStream(tensors[0], tensors[1], batch_size, name, device, seed)
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        if not hasattr(source, "__len__"):
            raise ValueError(f"`{name}` must have a length, got {type(source).__name__}")
        if len(source) == 0:
            raise ValueError(f"`{name}` must hold at least one example, got none")
        return LoaderStream(DataLoader(source, batch_size, shuffle=True), name, device, seed)
    raise TypeError(
        f"`{name}` must be a pair of tensors, a map-style Dataset or a DataLoader, got {type(source).__name__}"
    )


def _tensors(source: Any) -> tuple[Tensor, ...] | None:
    if isinstance(source, TensorDataset):
        return source.tensors
    if isinstance(source, Subset):
        whole = _tensors(source.dataset)
        return None if whole is None else tuple(t[torch.as_tensor(source.indices, dtype=torch.long)] for t in whole)
    if isinstance(source, (tuple, list)) and all(isinstance(t, Tensor) for t in source):
        return tuple(source)
    return None
