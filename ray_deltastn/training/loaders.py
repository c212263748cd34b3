"""Minibatches of a `DataLoader` with exact positions: each pass is a function of (seed, pass number) alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ray_deltastn.response.trees import described, mapped, taken, tensors
from ray_deltastn.training.random_state import isolated, seed_of
from ray_deltastn.training.streams import Batch, Pair, Stream, as_pair, examples_of, once, structure_of

#: Samplers that give as many indices as their length says.
_EXACT = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_END = object()


class LoaderStream(Stream):
    """Minibatches of a `DataLoader`; a resumed run reads the current pass again up to the position.

    The loader stays as it is: each pass has a copy of it, with its own worker processes. So splits may share a loader.
    Workers end with their pass also if they are `persistent_workers`: a second pass of the same workers continues their
    random numbers, which a resumed run could not do.

    Args:
        loader: the loader, which must have a length.
        name: name of the split, for errors.
        device: where minibatches are needed.
        seed: seed of the order.
        pair: takes inputs and targets from what the loader gives; None means that it gives pairs.

    Raises:
        ValueError: if the loader has no length, is empty, or its sampler gives another number of minibatches than its
            length. The same from a pass that has another number of minibatches.
    """

    def __init__(
        self, loader: DataLoader[Any], name: str, device: torch.device, seed: int, pair: Pair | None = None
    ) -> None:
        super().__init__(name, device, seed)
        self.loader = loader
        self._pair = pair
        self._iterator: Iterator[Any] | None = None
        try:
            self._length = len(loader)
        except TypeError:
            raise ValueError(f"`{name}` must have a length, got a loader of {type(loader.dataset).__name__}") from None
        if self._length == 0:
            raise ValueError(f"`{name}` must hold at least one minibatch, got none")
        self._sources = _sources(loader)
        self._smallest = self._scan()

    def __len__(self) -> int:
        return self._length

    @property
    def smallest_batch(self) -> int:
        """Examples in the smallest minibatch; 0 if the loader does not determine it."""
        return self._smallest

    def _scan(self) -> int:
        """Examples in the smallest minibatch, or 0; a sampler of an unknown kind is run once, without the data."""
        loader, size = self.loader, self.loader.batch_size
        if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
            if size is None or (loader.num_workers and not loader.drop_last):
                return 0
            return size if loader.drop_last else len(loader.dataset) % size or size  # type: ignore[arg-type]
        if size is not None and type(loader.sampler) in _EXACT:
            return size if loader.drop_last else len(loader.sampler) % size or size  # type: ignore[arg-type]
        if type(loader).__iter__ is not DataLoader.__iter__:
            return 0  # it may give other minibatches than its sampler
        with isolated(self._begin(2)):
            try:  # the sampler may count its passes, and may hold the data
                sampler = copy.deepcopy(loader.batch_sampler, {id(loader.dataset): loader.dataset})
            except (TypeError, RuntimeError, NotImplementedError):
                return 0
            sizes = [len(rows) if isinstance(rows, Sized) else 0 for rows in islice(sampler, self._length + 1)]
        if len(sizes) != self._length:
            self._refuse(len(sizes))
        return min(sizes)

    def _refuse(self, given: int) -> None:
        """Refuse a pass that has another number of minibatches than the loader's length."""
        got, why = "more" if given > self._length else str(given), ""
        if self.loader.num_workers > 1 and isinstance(self.loader.dataset, IterableDataset):
            why = (
                f"; each of the {self.loader.num_workers} workers must give its share of the examples "
                "(`get_worker_info`) in minibatches of its own, which the `__len__` of a `DataLoader` can count"
            )
        raise ValueError(
            f"`len(loader)` of `{self.name}` must be the number of its minibatches, got {self._length} and a pass with "
            f"{got}{why}"
        )

    def _begin(self, *parts: int) -> int:
        """Seed the generators of the loader for what follows, and return a seed for the global ones."""
        seed = seed_of(self.seed, *parts)
        for source in self._sources:
            _seed(source, seed)
        return seed

    def _draws(self, *parts: int) -> Iterator[Any]:
        # Samplers and transforms may draw from the global generators or from the loader's generators. Each minibatch
        # has its own seed, so that nothing between two minibatches changes it. The iterator and its first minibatch
        # share one seed.
        loader = _copied(self.loader)
        position, batches = 0, None
        while True:
            with isolated(self._begin(*parts, position)):
                if batches is None:
                    self._tell_pass(loader, parts[-1] if len(parts) > 1 else 0)
                    batches = iter(loader)
                batch = next(batches, _END)
            if position == self._length and batch is _END:
                return
            if position == self._length or batch is _END:
                self._refuse(position + (batch is not _END))
            yield batch
            position += 1

    def _apart(self) -> LoaderStream:
        """A copy whose pass does not refer to this stream.

        A cycle of references would leave the end of the worker processes to the garbage collector. It takes the queues
        apart before the workers have heard of their end, and then waits five seconds for each.
        """
        found = copy.copy(self)
        found._iterator = None
        return found

    def _tell_pass(self, loader: DataLoader[Any], number: int) -> None:
        """Tell the number of the pass to samplers and data whose order follows it, such as `DistributedSampler`."""
        for part in (loader.sampler, loader.batch_sampler, loader.dataset):
            tell = getattr(part, "set_epoch", None)
            if callable(tell):
                tell(number)

    def next(self) -> Batch:
        """The next minibatch of the loader."""
        if self.position >= self._length:
            self.pass_number, self.position, self._iterator = self.pass_number + 1, 0, None
        if self._iterator is None:
            self._iterator = self._apart()._draws(0, self.pass_number)
            for _ in range(self.position):
                next(self._iterator)
        batch = next(self._iterator)
        self.position += 1
        if self.position == self._length:
            next(self._iterator, None)  # the pass must end here
        return self._on_device(batch)

    def _on_device(self, batch: Any) -> Batch:
        x, y = as_pair(batch, self.name, self._pair)
        for part in (x, y):
            if not tensors(part):
                raise ValueError(f"`{self.name}` must give pairs (x, y) of tensors, got {described(part)}")
        examples_of(x, y, self.name, "in each minibatch ")
        self.structure = self.structure or structure_of(x, y)

        move = once(lambda t: t.to(self.device, non_blocking=True))
        return mapped(move, x), mapped(move, y)

    def in_order(self) -> Iterator[Batch]:
        """One pass over the loader, the same each time."""
        for batch in self._draws(1):
            yield self._on_device(batch)

    def first(self, count: int = 4) -> Batch:
        """A few examples, read in this process: no workers start for them."""
        loader = self.loader
        if loader.num_workers == 0:
            return super().first(count)
        with isolated(self._begin(2)):
            if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
                batch = next(iter(_copied(loader, workers=False)), _END)
                if batch is _END:
                    self._refuse(0)
                x, y = taken(self._on_device(batch), slice(count))
                return x, y
            chosen = next(iter(loader.batch_sampler))[:count]
            return self._on_device(loader.collate_fn([loader.dataset[row] for row in chosen]))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; the minibatches of the pass before it are read again."""
        super().load_state_dict(state)
        self._iterator = None


def _copied(loader: DataLoader[Any], workers: bool = True) -> DataLoader[Any]:
    """A copy of a loader for one pass, with its own workers or without workers."""
    found = copy.copy(loader)
    # `DataLoader` refuses to set these attributes.
    changes: dict[str, Any] = {"_iterator": None, "persistent_workers": False}
    if hasattr(type(loader.dataset), "__next__"):  # data that are their own iterator serve one pass at a time
        changes["dataset"] = copy.copy(loader.dataset)
    if not workers:
        changes |= {"num_workers": 0, "timeout": 0, "prefetch_factor": None}
    vars(found).update(changes)
    return found


def _sources(loader: DataLoader[Any]) -> list[Any]:
    """The random generators that a loader, its samplers and its data hold as attributes."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting: list[Any] = [loader]
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        for value in list(getattr(holder, "__dict__", {}).values()):
            if isinstance(value, kinds):
                found[id(value)] = value
            elif isinstance(value, Sampler | Dataset) or (holder is loader and hasattr(value, "sampler")):
                waiting.append(value)
    return list(found.values())


def _seed(source: Any, seed: int) -> None:
    if isinstance(source, torch.Generator):
        source.manual_seed(seed)
    elif isinstance(source, np.random.Generator):
        source.bit_generator.state = type(source.bit_generator)(seed).state
    else:
        source.seed(seed & 0xFFFFFFFF)
