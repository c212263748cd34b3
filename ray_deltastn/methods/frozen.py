"""Context managers that keep parts of a network constant during a pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Compute no gradients for these parameters within the context, and keep no activations for them."""
    held = [p for p in parameters if p.requires_grad]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


class RunningStatistics:
    """The statistics of a model that a pass over perturbed data must not change.

    They are those of normalisation layers, and other buffers that a module changes in training mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.batch = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.instance = [m for m in model.modules() if isinstance(m, _InstanceNorm) and m.track_running_stats]
        known = {*self.batch, *self.instance}
        self.others = [
            (m, name) for m in model.modules() if m not in known for name, b in m._buffers.items() if b is not None
        ]
        #: Those of `others` that change in training mode; None before the first pass.
        self._changing: set[int] | None = None

    def held(self) -> AbstractContextManager[None]:
        """Normalise with batch statistics in training mode, without an update of the running statistics."""
        return self._held() if self.batch or self.instance or self.others else nullcontext()

    @contextmanager
    def _held(self) -> Iterator[None]:
        kept = [(layer.running_mean, layer.running_var) for layer in self.instance]
        for m in self.batch:
            m.track_running_stats = False
        for layer in self.instance:
            # Instance normalisation has no such switch. A momentum of zero would still change the statistics by
            # rounding errors.
            layer.running_mean = layer.running_var = None
        buffers = self._buffers() if self.model.training else []
        try:
            yield
        finally:
            for m in self.batch:
                m.track_running_stats = True
            for layer, (mean, variance) in zip(self.instance, kept, strict=True):
                layer.running_mean, layer.running_var = mean, variance
            self._restore(buffers)

    def _buffers(self) -> list[tuple[Tensor, int, Tensor | None]]:
        """The other buffers, their versions, and copies of those that may change: all in the first pass."""
        found: list[tuple[Tensor, int, Tensor | None]] = []
        for i, (module, name) in enumerate(self.others):
            buffer = module._buffers[name]
            assert buffer is not None
            may_change = self._changing is None or i in self._changing
            found.append((buffer, buffer._version, buffer.detach().clone() if may_change else None))
        return found

    def _restore(self, buffers: Sequence[tuple[Tensor, int, Tensor | None]]) -> None:
        if not buffers:
            return
        changing: set[int] = set() if self._changing is None else self._changing
        for i, ((module, name), (buffer, version, copy)) in enumerate(zip(self.others, buffers, strict=True)):
            # A version counts the changes in place; to read it, the host need not wait for the device.
            if buffer._version != version:
                changing.add(i)
                if copy is not None:
                    with torch.no_grad():
                        buffer.copy_(copy)
            module._buffers[name] = buffer
        self._changing = changing
