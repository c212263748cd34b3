"""What several workers need besides averaged gradients: their rows of the data, and the same task and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from ray_deltastn.methods import Method, Workers
from ray_deltastn.response.trees import mapped, rows, taken, tensors
from ray_deltastn.task import Task
from ray_deltastn.training.loaders import LoaderStream
from ray_deltastn.training.segments import SegmentStream
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.streams import Batch, Stream, once


class Shared(Stream):
    """The rows of one worker in the minibatches of a split.

    All workers draw the same minibatches, because these are a function of the seed and the position. Each worker takes
    its own rows of each. If the loader has a `DistributedSampler`, its minibatches hold rows of this worker only, and
    they are not split again.

    Args:
        inner: the minibatches of the split.
        workers: the workers.

    Raises:
        ValueError: if a `DistributedSampler` is for another number of workers, or for another worker.
    """

    def __init__(self, inner: Stream, workers: Workers) -> None:
        super().__init__(inner.name, inner.device, inner.seed)
        self.inner = inner
        self._workers = workers
        self.is_split = False
        self._read_on = inner.device
        if isinstance(inner, LoaderStream):
            self._read_on = torch.device("cpu")  # only the rows of this worker go to the training device
            sampler = inner.loader.sampler
            self.is_split = isinstance(sampler, DistributedSampler)
            if isinstance(sampler, DistributedSampler):
                got, own = (sampler.num_replicas, sampler.rank), (workers.size, workers.rank)
                if got != own:
                    raise ValueError(
                        f"the `DistributedSampler` of `{inner.name}` must have `num_replicas` and `rank` of this "
                        f"worker, {own}, got {got}"
                    )

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def smallest_batch(self) -> int:
        """Examples in the smallest share of a minibatch; 0 if that is not known."""
        smallest = self.inner.smallest_batch
        return smallest if self.is_split or not smallest else max(1, smallest // self._workers.size)

    def weight(self, x: Any, y: Any) -> int:
        """The weight of the rows of this worker in the mean over a split."""
        return self.inner.weight(x, y)

    @property
    def whole(self) -> Stream:
        """The minibatches as they are before they are split."""
        return self.inner

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Context in which minibatches are not moved to the training device."""
        self.inner.device = self._read_on
        try:
            yield
        finally:
            self.inner.device = self.device

    def next(self) -> Batch:
        """The rows of this worker in the next minibatch."""
        with self._reading():
            x, y = self.inner.next()
        return self._here(*(self._workers.keep(x, y) if self.is_split else self._workers.share(x, y)))

    def in_order(self) -> Iterator[Batch]:
        """One pass for evaluation; minibatches without a row of this worker are left out."""
        batches = self.inner.in_order()
        while True:
            with self._reading():
                batch = next(batches, None)
            if batch is None:
                return
            part = slice(None) if self.is_split else self._workers.own(rows(batch))
            if part.stop is None or part.stop > part.start:
                x, y = taken(batch, part)
                yield self._here(x, y)

    def _here(self, x: Any, y: Any) -> Batch:
        self.structure = self.inner.structure
        move = once(lambda t: t.to(self.device, non_blocking=True))
        return mapped(move, x), mapped(move, y)

    def first(self, count: int = 4) -> Batch:
        """A few examples, the same on all workers unless the data are split by a `DistributedSampler`."""
        return self.inner.first(count)

    def state_dict(self) -> dict[str, Any]:
        """Position in the data."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        self.inner.load_state_dict(state)


class SharedSegments(SegmentStream):
    """The streams of one worker in the segments of a split; their state is carried by this worker alone.

    Args:
        inner: the segments of the split.
        workers: the workers.

    Raises:
        ValueError: if a split that steps are taken on has fewer streams than workers.
    """

    def __init__(self, inner: SegmentStream, workers: Workers) -> None:
        count = inner.segments.batch_size
        if inner.name != "test" and count < workers.size:
            raise ValueError(
                f"`batch_size` of the `Segments` of `{inner.name}` must be at least the number of workers, "
                f"{workers.size}, got {count}"
            )
        super().__init__(inner.segments, inner.name, inner.device, workers.own(count))
        self._inner, self._workers = inner, workers

    def next(self) -> Batch:
        """The next segment of each stream of this worker."""
        return self._workers.keep(*super().next())

    @property
    def whole(self) -> Stream:
        """The segments of all workers."""
        return self._inner

    def first(self, count: int = 4) -> Batch:
        """A few sequences, the same on all workers."""
        return self._inner.first(count)


def shared(found: Stream, workers: Workers) -> Stream:
    """The rows of one worker in the minibatches of a split."""
    if workers.size == 1:
        return found
    return SharedSegments(found, workers) if isinstance(found, SegmentStream) else Shared(found, workers)


def check_workers(settings: Settings, method: Method, model: nn.Module) -> None:
    """Refuse what several workers cannot do together.

    Raises:
        ValueError: if the method keeps its train steps, the steps must be captured, a layer gives sparse gradients, or
            a layer that responds normalises with the statistics of all workers.
    """
    if method.hypergradient in ("implicit", "unrolled"):
        raise ValueError(
            f"`method` must learn a response, or be 'fixed', for several workers, got '{method.name}', whose "
            "hypergradient is not a mean over rows"
        )
    if settings.graph == "on":
        raise ValueError("`graph` must be auto or off for several workers, whose steps are not captured, got 'on'")
    for name, layer in model.named_modules():
        if getattr(layer, "sparse", False):
            raise ValueError(f"layers must have dense gradients for several workers, got `sparse=True` for '{name}'")
        if method.responds and isinstance(layer, nn.SyncBatchNorm):
            raise ValueError(
                f"batch normalisation must have the statistics of each worker for '{method.name}', got SyncBatchNorm "
                f"'{name}', which has no forward-mode rule; use BatchNorm"
            )


def check_same(workers: Workers, settings: Settings, task: Task, splits: list[Stream]) -> None:
    """Check that all workers have the same settings, the same kind of model, the same hyperparameters and data.

    Raises:
        ValueError: if they have not.
    """
    values: dict[str, Any] = {
        f"`{name}`": repr(getattr(settings, name)) for name in settings.names() if name != "device"
    }
    values |= {f"the tensor '{name}' of `model`": _kind(t) for name, t in task.model.state_dict().items()}
    values |= {f"hyperparameter '{name}'": about for name, about in task.space.fingerprint().items()}
    values |= {f"`identity[{name!r}]`": text for name, text in task.identity.items()}
    for what, parts in (
        ("augment", task.augmentations),
        ("penalty", task.penalties),
        ("valid_penalty", task.valid_penalties),
    ):
        values[f"`{what}`"] = [(type(part).__name__, *part.names) for part in parts]
    values["`metrics`"] = list(task.metrics)
    for split in splits:
        values[f"the number of minibatches of `{split.name}`"] = len(split)
        if not (isinstance(split, Shared) and split.is_split):
            values[f"the first examples of `{split.name}` (as a hash)"] = _hash(split.first())
    workers.require_same(values)


def _kind(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"


def _hash(tree: Any) -> str:
    found = hashlib.sha256()
    for t in tensors(tree):
        found.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]
