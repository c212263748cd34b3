"""Parts of a network held still during a pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Build no gradient for these parameters while inside, and keep no activations for it."""
    held = [p for p in parameters if p.requires_grad]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


class RunningStatistics:
    """The normalisation layers of a model whose running statistics a pass over perturbed data must not touch."""

    def __init__(self, model: nn.Module) -> None:
        self.batch = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.instance = [m for m in model.modules() if isinstance(m, _InstanceNorm) and m.track_running_stats]

    def held(self) -> AbstractContextManager[None]:
        """Normalise by batch statistics in training mode, without updating the running ones."""
        return self._held() if self.batch or self.instance else nullcontext()

    @contextmanager
    def _held(self) -> Iterator[None]:
        kept = [(layer.running_mean, layer.running_var) for layer in self.instance]
        for m in self.batch:
            m.track_running_stats = False
        for layer in self.instance:
            # It has no such switch: with a momentum of zero it would still round its statistics anew.
            layer.running_mean = layer.running_var = None
        try:
            yield
        finally:
            for m in self.batch:
                m.track_running_stats = True
            for layer, (mean, variance) in zip(self.instance, kept, strict=True):
                layer.running_mean, layer.running_var = mean, variance
