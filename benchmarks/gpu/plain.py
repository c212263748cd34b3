"""Plain training in PyTorch alone, as a loop of one's own that is captured in the same way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.items import Place
from benchmarks.gpu.networks import Split, network
from benchmarks.speed import constant_dropout
from ray_deltastn.training.capture.graphs import EAGER

#: Strength of the weight decay.
DECAY = 1e-4


class Plain:
    """SGD with momentum and weight decay on the cross-entropy of a network with constant dropout rates.

    Args:
        net: one of `networks.NETS`.
        place: where to train.
        data: training examples, which stay on the device.
        batch: examples of a minibatch.
        graph: whether the step is a CUDA graph.
        half: whether the network runs under bfloat16 autocast.
        channels_last: whether images and weights are in the channels-last memory order.
        lr: learning rate.
    """

    def __init__(
        self,
        net: str,
        place: Place,
        data: Split,
        batch: int,
        *,
        graph: bool = False,
        half: bool = False,
        channels_last: bool = False,
        lr: float = 0.01,
    ) -> None:
        torch.manual_seed(0)
        self.place, self.batch, self.half = place, batch, half
        model = network(net, place.tiny)
        constant_dropout(model)
        order = torch.channels_last if channels_last else torch.contiguous_format
        self.order: Any = order if data[0].dim() == 4 else torch.contiguous_format
        self.model = model.to(place.device)
        if channels_last:
            self.model.to(memory_format=order)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr, momentum=0.9, weight_decay=DECAY)
        self.x, self.y = (t.to(place.device) for t in data)
        self.total = torch.zeros((), dtype=torch.float64, device=place.device)
        self._position = 0
        self._shuffle()
        self._replay: Callable[[], Tensor] | None = None
        if graph:
            self._capture()

    def step(self) -> None:
        """One train step on the next minibatch."""
        x, y = self._next()
        if self._replay is None:
            self.total += self._update(x, y)
            return
        self._static[0].copy_(x)
        self._static[1].copy_(y)
        self.total += self._replay()

    def _shuffle(self) -> None:
        order = torch.randperm(len(self.x))
        pinned = order.pin_memory() if self.place.on_gpu else order
        self._order = pinned.to(self.place.device, non_blocking=True)

    def _next(self) -> Split:
        if self._position + self.batch > len(self.x):
            self._position = 0
            self._shuffle()
        chosen = self._order[self._position : self._position + self.batch]
        self._position += self.batch
        return self.x.index_select(0, chosen), self.y.index_select(0, chosen)

    def _update(self, x: Tensor, y: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        x = x.contiguous(memory_format=self.order)
        kind = self.place.device.type
        with torch.autocast(kind, torch.bfloat16) if self.half else nullcontext():
            output = self.model(x)
        loss = F.cross_entropy(output.float(), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _capture(self) -> None:
        """Capture the step as PyTorch's documentation says, after eager steps on another stream."""
        device = self.place.device
        self._static = tuple(t.clone() for t in self._next())
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(EAGER):
                self._update(*self._static)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            result = self._update(*self._static)

        def replay() -> Tensor:
            graph.replay()
            return result

        self._replay = replay
