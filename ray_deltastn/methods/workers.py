"""Several processes that train one network: each takes some rows of each minibatch, and gradients are averaged.

PyTorch's `DistributedDataParallel` averages gradients in hooks of `backward()`, on the parameters of the module that it
wraps. Here the gradients of w₀, Θ, λ and σ come from `torch.autograd.grad`, in passes with other functions than the
module's own `forward`, and Θ, λ and σ are not parameters of the module. So the gradients are averaged here, between
`autograd.grad` and the optimiser.

| symbol | code     | meaning                                                              |
|--------|----------|----------------------------------------------------------------------|
| R      | `size`   | number of processes                                                  |
| n_r    | `weight` | rows of the minibatch that process r has used                        |
| g_r    |          | gradient of the mean over these rows                                 |
| g      |          | Σ_r n_r g_r / Σ_r n_r, the gradient of the mean over all rows        |
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ray_deltastn.response.trees import rows, taken

#: Seconds after which a process gives up to wait for the others.
TIMEOUT = 600.0

Value = TypeVar("Value")


class Workers:
    """The processes that train one network together, over `torch.distributed`.

    All processes must make the same calls in the same order.

    Args:
        group: their process group. The default is the group of all processes.

    Attributes:
        rank: number of this process.
        size: number of processes.

    Raises:
        RuntimeError: if `torch.distributed` is not initialised.

    Examples:
        >>> with rd.Workers.join() as workers:  # under `torchrun`; without it this is one process
        ...     tuner = rd.SelfTuner(build({}), epochs=2, workers=workers)
        ...     reports = list(tuner.fit())
        >>> workers
        Workers(rank=0, size=1)
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "`torch.distributed` must be initialised for `Workers()`, got none; `Workers.join()` does it"
            )
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._has_rows = True
        self._uneven: Tensor | None = None
        self._heads: dict[tuple[Any, ...], Tensor] = {}

    @classmethod
    def alone(cls) -> Workers:
        """One process."""
        found = cls.__new__(cls)
        found._group, found.rank, found.size = None, 0, 1
        found._has_rows, found._uneven, found._heads = True, None, {}
        return found

    @classmethod
    @contextmanager
    def join(cls, timeout: float = TIMEOUT) -> Iterator[Workers]:
        """Context of the processes that `torchrun` has started; without it, one process.

        It initialises `torch.distributed` from the environment of `torchrun`, with NCCL for tensors on GPUs and gloo
        for those on CPUs, and ends it when the context ends. Each process gets the GPU of its number on its machine. If
        `torch.distributed` is initialised already, it is used as it is.

        Args:
            timeout: seconds after which a process that waits for the others fails.
        """
        if dist.is_available() and dist.is_initialized():
            yield cls()
            return
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            yield cls.alone()
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group(backend(torch.cuda.is_available()), timeout=timedelta(seconds=timeout))
        try:
            yield cls()
        finally:
            dist.destroy_process_group()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"

    def own(self, count: int) -> slice:
        """The rows of this process among `count` rows; the first processes have one more if they cannot be equal."""
        least, more = divmod(count, self.size)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def share(self, x: Any, y: Any) -> tuple[Any, Any]:
        """The rows of this process in a minibatch for the next step.

        A minibatch with fewer rows than processes leaves some without a row. Such a process takes the first row, so
        that it makes the same passes as the others, and its numbers do not count in `mean`.

        Args:
            x: inputs (B, …).
            y: targets (B, …).
        """
        part = self.own(rows(x))
        self._has_rows = part.stop > part.start
        if not self._has_rows:
            part = slice(0, 1)
        return taken(x, part), taken(y, part)

    def keep(self, x: Any, y: Any) -> tuple[Any, Any]:
        """A minibatch for the next step that holds rows of this process only."""
        self._has_rows = True
        return x, y

    @torch.no_grad()
    def mean(self, found: Sequence[Tensor | None], like: Sequence[Tensor], weight: float) -> list[Tensor | None]:
        """Σ_r n_r t_r / Σ_r n_r for each tensor t, in one collective operation.

        The result is the same on all processes, to the bit. A tensor that is None stays None, and must be None on all
        processes, see `check`.

        Args:
            found: the tensors t_r of this process.
            like: tensors of the same shapes and types; none is None.
            weight: n_r, the rows behind the tensors.
        """
        if self.size == 1:
            return list(found)
        kind = reduce(torch.promote_types, (t.dtype for t in like), torch.float32)
        device = like[0].device
        zero = torch.zeros((), dtype=kind, device=device)
        parts = [
            zero.expand(p.numel()) if t is None else t.reshape(-1).to(kind) for t, p in zip(found, like, strict=True)
        ]
        weight = weight if self._has_rows else 0.0
        # Behind the tensors: the weight, and for each tensor whether this process has it.
        flat = torch.cat([*parts, self._head(weight, [t is not None for t in found], kind, device)])
        if self._has_rows:
            flat[: -1 - len(like)] *= weight
        else:  # a product with zero would keep NaN
            flat[: -1 - len(like)] = 0.0
        dist.all_reduce(flat, group=self._group)
        *sums, total, given = flat.split([p.numel() for p in like] + [1, len(like)])
        uneven = ((given > 0) & (given < self.size)).any()
        self._uneven = uneven if self._uneven is None else self._uneven | uneven
        return [None if t is None else _as(s / total, p) for t, s, p in zip(found, sums, like, strict=True)]

    def _head(self, weight: float, given: Sequence[bool], kind: torch.dtype, device: torch.device) -> Tensor:
        """The weight, and 1 for each tensor that is given; kept, so that the host need not wait for the device."""
        key = (weight, tuple(given), kind, device)
        if key not in self._heads:
            self._heads[key] = torch.tensor([weight, *map(float, given)], dtype=kind, device=device)
        return self._heads[key]

    def check(self, parameters: Iterable[Tensor]) -> None:
        """Check that all processes have the same parameters, and had gradients for the same parameters.

        Args:
            parameters: w₀, Θ, λ and σ.

        Raises:
            RuntimeError: if they have not; the message is the same on all processes.
        """
        if self.size == 1:
            return
        norms = torch.stack([torch.linalg.vector_norm(p.detach().double()) for p in parameters]).tolist()
        every = self.gathered((norms, self._uneven is not None and bool(self._uneven)))
        self._uneven = None
        if any(uneven for _, uneven in every):
            raise RuntimeError(
                "all workers must have gradients for the same parameters in each step, got others on some of them: a "
                "part of the model depends on the data of the minibatch"
            )
        # NaN is not equal to itself.
        odd = [rank for rank, (own, _) in enumerate(every) if repr(own) != repr(every[0][0])]
        if odd:
            raise RuntimeError(f"all workers must have the same weights, got others on worker {odd[0]} than on 0")

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the numbers of process 0, in one collective operation for each type of number."""
        if self.size == 1:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for t in tensors:
            kinds.setdefault((t.dtype, t.device), []).append(t)
        for some in kinds.values():
            flat = torch.cat([t.detach().reshape(-1) for t in some])
            dist.broadcast(flat, self._first, group=self._group)
            for t, part in zip(some, flat.split([t.numel() for t in some]), strict=True):
                t.detach().copy_(part.view(t.shape))

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes, in their order; values are pickled."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def agreed(self, value: Value) -> Value:
        """The value of process 0; values are pickled."""
        if self.size == 1:
            return value
        found: list[Any] = [value]
        dist.broadcast_object_list(found, self._first, group=self._group)
        kept: Value = found[0]
        return kept

    def require_same(self, values: Mapping[str, Any]) -> None:
        """Check that values are the same on all processes.

        Args:
            values: the values by what they are, for the error; they can be compared with `==`.

        Raises:
            ValueError: with the first value that is not the same, on all processes.
        """
        every = self.gathered(dict(values))
        for rank, theirs in enumerate(every):
            for what in {**every[0], **theirs}:
                one, other = every[0].get(what), theirs.get(what)
                if one != other:
                    raise ValueError(
                        f"{what} must be the same on all workers, got {one} on worker 0 and {other} on worker {rank}"
                    )

    @property
    def _first(self) -> int:
        """Number of process 0 of the group among all processes."""
        return 0 if self._group is None else dist.get_global_rank(self._group, 0)


def backend(gpus: bool) -> str:
    """The backend of `torch.distributed`: gloo for tensors on CPUs, and NCCL for those on GPUs."""
    return "cpu:gloo,cuda:nccl" if gpus else "gloo"


def _as(flat: Tensor, like: Tensor) -> Tensor:
    """Numbers in the type, the shape and the memory order of another tensor."""
    found = flat.view(like.shape)
    if like.is_contiguous():
        return found.to(like.dtype)
    return torch.empty_like(like, requires_grad=False).copy_(found)
