"""Context managers that keep parts of a network constant during a pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
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
    """The normalisation layers of a model whose running statistics a pass over perturbed data must not change."""

    def __init__(self, model: nn.Module) -> None:
        self.batch = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.instance = [m for m in model.modules() if isinstance(m, _InstanceNorm) and m.track_running_stats]

    def held(self) -> AbstractContextManager[None]:
        """Normalise with batch statistics in training mode, without an update of the running statistics."""
        return self._held() if self.batch or self.instance else nullcontext()

    @contextmanager
    def _held(self) -> Iterator[None]:
        kept = [(layer.running_mean, layer.running_var) for layer in self.instance]
        for m in self.batch:
            m.track_running_stats = False
        for layer in self.instance:
            # Instance normalisation has no such switch. A momentum of zero would still change the statistics by
            # rounding errors.
            layer.running_mean = layer.running_var = None
        try:
            yield
        finally:
            for m in self.batch:
                m.track_running_stats = True
            for layer, (mean, variance) in zip(self.instance, kept, strict=True):
                layer.running_mean, layer.running_var = mean, variance
