"""Train and hyper steps captured once and replayed: as CUDA graphs on a GPU, as tapes on a CPU.

A small network is bound by the host, which finds out anew in each step which hundred operations to call.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from ray_deltastn import random_state
from ray_deltastn.health import RunWarning
from ray_deltastn.methods import Steps
from ray_deltastn.tape import Tape

#: Steps on minibatches of one shape that run as they are before the next one is captured: libraries choose their
#: kernels, optimisers make their buffers.
EAGER = 3
#: Shapes of minibatches that are captured, for each kind of step; each holds memory of its own.
SHAPES = 4

Run = Callable[[], Tensor]
_DRAWS = "it draws from Python's or NumPy's random numbers, which would not be drawn again"


@dataclass(frozen=True)
class Recording:
    """A captured step.

    Attributes:
        replay: executes it, on the same tensors each time; None if it cannot be captured, and `reason` says why.
        result: what it gave if capturing has executed it.
    """

    replay: Run | None
    result: Tensor | None = None
    reason: str = ""


class Recorder(Protocol):
    """What can capture a step."""

    def eager(self, run: Run) -> Tensor:
        """Run a step as it is, where steps are captured later."""
        ...

    def record(self, run: Run) -> Recording:
        """Capture a step; an exception leaves everything as if it had not been tried."""
        ...


class TapeRecorder:
    """Writes down the operations of a step on a CPU while it runs."""

    def eager(self, run: Run) -> Tensor:
        """Run a step as it is."""
        return run()

    def record(self, run: Run) -> Recording:
        """Run a step and keep its operations."""
        before = random_state.host_draws(torch_too=False)
        with Tape() as tape:
            result = run()
        drew = random_state.host_draws(torch_too=False) != before
        reason = _DRAWS if drew else tape.reason
        return Recording(None if reason else tape.player(result), result, reason)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    # One for all trials of a process: libraries keep a workspace for each stream they have seen.
    return torch.cuda.Stream(device)


class CudaRecorder:
    """Captures CUDA graphs.

    Args:
        device: the training device.
        generators: the explicit generators that a step draws from; PyTorch's default one is always captured.
    """

    def __init__(self, device: torch.device, generators: list[torch.Generator]) -> None:
        self.device = device
        self.generators = generators
        self.stream = _stream(device)
        # Graphs run one after the other and their results are copied, so they share their memory.
        self.pool = torch.cuda.graph_pool_handle()

    def eager(self, run: Run) -> Tensor:
        """Run a step as it is, on the stream of the captures."""
        usual = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(usual)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # These very optimisers are captured a few steps later.
            warnings.filterwarnings("ignore", message=".*capturable=True")
            result = run()
        usual.wait_stream(self.stream)
        return result

    def record(self, run: Run) -> Recording:
        """Capture a step as a graph, without executing it."""
        outer = random_state.capture(torch.device("cpu"))
        before = random_state.host_draws()
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # A loader's thread may pin memory meanwhile, which a capture that forbids it to all threads would not survive.
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                result = run()
            if random_state.host_draws() != before:
                raise RuntimeError(_DRAWS)
        except BaseException:
            random_state.restore(outer, torch.device("cpu"))
            raise

        def replay() -> Tensor:
            graph.replay()
            return result

        return Recording(replay)


class _Captured:
    """One step, captured for minibatches of one shape."""

    def __init__(self, recorder: Recorder, step: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> None:
        self.x, self.y = x.clone(), y.clone()
        self.recording = recorder.record(lambda: step(self.x, self.y))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.recording.replay is not None
        self.x.copy_(x)
        self.y.copy_(y)
        # The next replay of a graph writes over its result.
        return self.recording.replay().clone()


class GraphedSteps(Steps):
    """The same updates of w₀, Θ, λ and σ, each step captured once per shape of its minibatch and replayed.

    A graph holds the numbers of the moment it was captured: learning rates, other options of the optimisers, and the
    row of constant hyperparameters. Where one of them changes, the steps are captured anew. No step is taken twice.

    Args:
        arguments: those of `Steps`.
        recorder: captures.
        must: raise if a step cannot be captured; else warn and go on without graphs.
        options: further arguments of `Steps`.

    Raises:
        RuntimeError: from a step that cannot be captured, if it must be.
    """

    def __init__(self, *arguments: Any, recorder: Recorder, must: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.recorder = recorder
        self.must = must
        self._refused: set[str] = set()
        self._seen: Counter[Hashable] = Counter()
        self._captured: dict[tuple[Hashable, ...], _Captured] = {}
        self._constants: Hashable = None

    def train_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Move w₀ and Θ on one minibatch; the model must be in training mode."""
        return self._run("train", super().train_step, x, y)

    def hyper_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Move λ, and σ if tuned, on one validation minibatch; the model must be in evaluation mode."""
        return self._run("hyper", super().hyper_step, x, y)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; optimisers that load one have other buffers than the captured ones."""
        super().load_state_dict(state)
        self._captured.clear()
        self._seen.clear()

    @property
    def captured(self) -> bool:
        """Whether steps are replayed by now."""
        return bool(self._captured)

    def _run(self, name: str, step: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        if name in self._refused:
            return step(x, y)
        constants = self._now()
        if constants != self._constants:
            self._captured.clear()
            self._constants = constants
        key = (name, x.shape, x.dtype, y.shape, y.dtype)
        if key not in self._captured:
            self._seen[key] += 1
            if self._seen[key] <= EAGER or sum(other[0] == name for other in self._captured) >= SHAPES:
                return self.recorder.eager(lambda: step(x, y))
            return self._capture(key, name, step, x, y)
        return self._captured[key](x, y)

    def _capture(
        self, key: tuple[Hashable, ...], name: str, step: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        """Take a step and keep it captured, if it can be."""
        try:
            captured = _Captured(self.recorder, step, x, y)
            reason, result = captured.recording.reason, captured.recording.result
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if isinstance(self.recorder, TapeRecorder):
                raise  # the step's own error
            # What broke the capture comes before what ending it says.
            reason, result = str(error.__context__ or error).strip().splitlines()[0], None
        if not reason:
            self._captured[key] = captured
        elif self.must:
            raise RuntimeError(f"`graph` must be off, {name} steps cannot be captured: {reason}")
        else:
            self._give_up(name, reason)
        if result is not None:
            return result
        return step(x, y) if reason else captured(x, y)

    def _now(self) -> Hashable:
        """What a graph takes as constant."""
        found: list[Hashable] = []
        for optimizer in (self.weights_optimizer, self.response_optimizer, self.hyper_optimizer):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    found += [value for name, value in group.items() if name != "params"]
        found += [parameter.data_ptr() for parameter in (*self.weights, *self.response)]
        row = self.objective.constant
        return (*found, None if row is None else row.data_ptr())

    def _give_up(self, name: str, reason: str) -> None:
        self._refused.add(name)
        space = self.objective.space
        for parameter in (*self.weights, *self.response, space.lam, space.raw_scale):
            parameter.grad = None
        warnings.warn(f"`graph` is off: {name} steps cannot be captured: {reason}", RunWarning, stacklevel=2)
