"""Recorders capture a step: as a CUDA graph on a GPU, as a `torch.fx` graph on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from ray_deltastn.training import random_state
from ray_deltastn.training.capture.trace import Trace

Run = Callable[[], Tensor]
#: Graphs whose capture has failed.
_ABANDONED: list[torch.cuda.CUDAGraph] = []
_DRAWS = "it draws from Python's or NumPy's random numbers, which a replay would not draw again"


@dataclass(frozen=True)
class Recording:
    """A captured step.

    Attributes:
        replay: executes the step, on the same tensors each time; None if the step cannot be captured.
        result: the result of the step if the capture has executed it.
        reason: why the step cannot be captured; empty if it can.
    """

    replay: Run | None
    result: Tensor | None = None
    reason: str = ""


class Recorder(Protocol):
    """Interface of the recorders."""

    compares: bool

    def eager(self, run: Run) -> Tensor:
        """Run a step eagerly, before steps of its kind are captured."""
        ...

    def record(self, run: Run) -> Recording:
        """Capture a step; after an exception everything is as before the call."""
        ...


class TraceRecorder:
    """Records the tensor operations of a step on a CPU while the step runs."""

    #: Whether the first replay is compared with the step itself.
    compares = True

    def eager(self, run: Run) -> Tensor:
        """Run a step eagerly."""
        return run()

    def record(self, run: Run) -> Recording:
        """Run a step and record its operations."""
        before = random_state.host_draws(torch_too=False)
        with Trace() as trace:
            result = run()
        drew = random_state.host_draws(torch_too=False) != before
        reason = _DRAWS if drew else trace.reason
        return Recording(None if reason else trace.player(result), result, reason)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    # All trials of a process share one stream: libraries keep a workspace for each stream they have seen.
    return torch.cuda.Stream(device)


class CudaRecorder:
    """Captures CUDA graphs.

    Args:
        device: the training device.
        generators: the explicit generators that a step draws from; PyTorch's default generator is always captured.
    """

    compares = False

    def __init__(self, device: torch.device, generators: list[torch.Generator]) -> None:
        self.device = device
        self.generators = generators
        self.stream = _stream(device)
        # Graphs run one after the other and their results are copied, so all of them can share one memory pool.
        self.pool = torch.cuda.graph_pool_handle()
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def eager(self, run: Run) -> Tensor:
        """Run a step eagerly, on the stream of the captures."""
        usual = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(usual)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # The same optimisers are captured a few steps later.
            warnings.filterwarnings("ignore", message=".*capturable=True")
            result = run()
        usual.wait_stream(self.stream)
        return result

    def record(self, run: Run) -> Recording:
        """Capture a step as a graph, without executing it."""
        outer = random_state.capture(torch.device("cpu"))
        before = random_state.host_draws()
        usual = torch.cuda.current_stream(self.device)
        if not self._graphs:
            # A pool ends with its last graph. PyTorch refuses its handle if a tensor of it is still alive.
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # A thread of a DataLoader may pin memory during the capture. A capture in the global mode would fail then.
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                result = run()
            if random_state.host_draws() != before:
                raise RuntimeError(_DRAWS)
        except BaseException:
            random_state.restore(outer, torch.device("cpu"))
            # If the end of the capture fails, too, PyTorch leaves its stream as the current one.
            torch.cuda.set_stream(usual)
            self._abandon(graph)
            # After a failed capture the generators may still be in their capturing state.
            for generator in (torch.cuda.default_generators[self._index], *self.generators):
                generator.graphsafe_set_state(generator.clone_state())
            raise
        self._graphs.add(graph)

        def replay() -> Tensor:
            graph.replay()
            return result

        return Recording(replay)

    @property
    def _index(self) -> int:
        return torch.cuda.current_device() if self.device.index is None else self.device.index

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """Let the allocator forget a capture that has failed.

        Before 2.14, PyTorch leaves the capture open: its memory is lost, and `torch.cuda.empty_cache` raises an error.
        """
        # The allocator may ask the graph until the process ends.
        _ABANDONED.append(graph)
        with suppress(RuntimeError):  # of a capture that did not begin
            graph.reset()
        with suppress(RuntimeError):  # of a capture that is not open
            torch._C._cuda_endAllocateToPool(self._index, self.pool)
            torch._C._cuda_releasePool(self._index, self.pool)
