"""Train and hyper steps captured once and replayed: as CUDA graphs on a GPU, as traces on a CPU.

A small network is bound by the host, which finds out anew in each step which hundred operations to call. Each step is
captured by itself, not the whole cycle of train and hyper steps: intervals, warm-up, and where in a cycle the smaller
last minibatch of a pass falls, make no difference then. It costs a copy of the minibatch and a few calls for each step.
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

from ray_deltastn.methods import Steps
from ray_deltastn.training import random_state
from ray_deltastn.training.capture.trace import Trace
from ray_deltastn.training.health import RunWarning

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

    compares: bool

    def eager(self, run: Run) -> Tensor:
        """Run a step as it is, where steps are captured later."""
        ...

    def record(self, run: Run) -> Recording:
        """Capture a step; an exception leaves everything as if it had not been tried."""
        ...


class TraceRecorder:
    """Writes down the operations of a step on a CPU while it runs."""

    #: Whether the first replay is compared with the step itself.
    compares = True

    def eager(self, run: Run) -> Tensor:
        """Run a step as it is."""
        return run()

    def record(self, run: Run) -> Recording:
        """Run a step and keep its operations."""
        before = random_state.host_draws(torch_too=False)
        with Trace() as trace:
            result = run()
        drew = random_state.host_draws(torch_too=False) != before
        reason = _DRAWS if drew else trace.reason
        return Recording(None if reason else trace.player(result), result, reason)


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

    compares = False

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
            # A capture that broke may have left them in the belief that it goes on.
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            for generator in (torch.cuda.default_generators[index], *self.generators):
                generator.graphsafe_set_state(generator.clone_state())
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
        self.compared = not recorder.compares

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.recording.replay is not None
        self.x.copy_(x)
        self.y.copy_(y)
        # The next replay of a graph writes over its result.
        return self.recording.replay().clone()


class GraphedSteps:
    """The updates of `Steps`, each step captured once per shape of its minibatch and replayed.

    A graph holds the numbers of the moment it was captured: learning rates, other options of the optimisers, and the
    row of constant hyperparameters. Where one of them changes, the steps are captured anew. No step is taken twice.

    Args:
        steps: the steps to capture.
        recorder: captures.
        must: raise if a step cannot be captured; else warn and go on without graphs.

    Raises:
        RuntimeError: from a step that cannot be captured, if it must be.
    """

    def __init__(self, steps: Steps, recorder: Recorder, must: bool) -> None:
        self.steps = steps
        self.objective = steps.objective
        self._optimizers = [
            optimizer
            for optimizer in (steps.weights_optimizer, steps.response_optimizer, steps.hyper_optimizer)
            if optimizer is not None
        ]
        self.recorder = recorder
        self.must = must
        self._refused: set[str] = set()
        # Where they are held, not which they are: a buffer may be exchanged for another one.
        self._buffers = [(m._buffers, name) for m in self.objective.model.modules() for name in m._buffers]
        self._seen: Counter[tuple[Hashable, ...]] = Counter()
        self._captured: dict[tuple[Hashable, ...], _Captured] = {}
        self._constants: tuple[Hashable, ...] = ()

    def train_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Move w₀ and Θ on one minibatch; the model must be in training mode."""
        return self._run("train", self.steps.train_step, x, y)

    def hyper_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Move λ, and σ if tuned, on one validation minibatch; the model must be in evaluation mode."""
        return self._run("hyper", self.steps.hyper_step, x, y)

    def state_dict(self) -> dict[str, Any]:
        """What the steps need to continue; captures are made again."""
        return self.steps.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; optimisers that load one have other buffers than the captured ones."""
        self.steps.load_state_dict(state)
        self._captured.clear()
        self._seen.clear()

    @property
    def captured(self) -> bool:
        """Whether steps of every kind are replayed by now, as far as they have been taken."""
        kinds = {key[0] for key in self._seen}
        return bool(kinds) and not self._refused and kinds == {key[0] for key in self._captured}

    def _run(self, name: str, step: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        if name in self._refused:
            return step(x, y)
        constants = self._now()
        if constants != self._constants:
            self._captured.clear()
            if self._constants and constants[1:] != self._constants[1:]:
                self._seen.clear()  # optimisers may make new buffers
            self._constants = constants
        key = (name, x.shape, x.stride(), x.dtype, y.shape, y.stride(), y.dtype)
        if key not in self._captured:
            self._seen[key] += 1
            if self._seen[key] <= EAGER or sum(other[0] == name for other in self._captured) >= SHAPES:
                return self.recorder.eager(lambda: step(x, y))
            return self._capture(key, name, step, x, y)
        captured = self._captured[key]
        if not captured.compared:
            return self._compare(captured, name, step, x, y)
        return captured(x, y)

    def _compare(
        self, captured: _Captured, name: str, step: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        """Replay a step for the first time, take it back, take the step itself, and compare."""
        state, generator = self._state(), self.objective.generator
        before = [tensor.clone() for tensor in state]
        draws = [(g, g.get_state()) for g in (torch.default_generator, generator) if g is not None]
        error = ""
        try:
            replayed = [captured(x, y), *(tensor.clone() for tensor in state)]
        except Exception as problem:
            error, replayed = f" ({_first_line(problem)})", []
        with torch.no_grad():
            for tensor, earlier in zip(state, before, strict=True):
                tensor.copy_(earlier)
        for drawn, where in draws:
            drawn.set_state(where)
        result = step(x, y)
        captured.compared = True
        if not replayed or not all(map(_same, replayed, [result, *state])):
            raise RuntimeError(f"`graph` must be off: {name} steps give other numbers when they are replayed{error}")
        return result

    def _state(self) -> list[Tensor]:
        """All that a step may change."""
        objective = self.objective
        kept = [t for o in self._optimizers for s in o.state.values() for t in s.values()]
        found = [*objective.model.parameters(), *objective.model.buffers(), *self.steps.response]
        return [*found, objective.space.lam, objective.space.raw_scale, *(t for t in kept if isinstance(t, Tensor))]

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
            if isinstance(self.recorder, TraceRecorder):
                raise  # the step's own error
            # What broke the capture comes before what ending it says.
            reason, result = _first_line(error.__context__ or error), None
            # Other graphs draw from the state that the generators had.
            self._captured.clear()
        if not reason:
            self._captured[key] = captured
        elif self.must:
            raise RuntimeError(f"`graph` must be off, {name} steps cannot be captured: {reason}")
        else:
            self._give_up(name, reason)
        if result is not None:
            return result
        return step(x, y) if reason else captured(x, y)

    def _now(self) -> tuple[Hashable, ...]:
        """What a graph takes as constant; learning rates, which change most, first."""
        rates: list[Hashable] = []
        rest: list[Hashable] = [self.steps.options]
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                rates.append(group["lr"])
                rest += [value for name, value in group.items() if name not in ("params", "lr")]
        row, space = self.objective.constant, self.objective.space
        rates.append(None if row is None else row.data_ptr())
        buffers = (held[name] for held, name in self._buffers)
        moved = (
            *self.steps.weights,
            *self.steps.response,
            *(b for b in buffers if b is not None),
            space.lam,
            space.raw_scale,
        )
        return (tuple(rates), *rest, *(tensor.data_ptr() for tensor in moved))

    def _give_up(self, name: str, reason: str) -> None:
        self._refused.add(name)
        space = self.objective.space
        for parameter in (*self.steps.weights, *self.steps.response, space.lam, space.raw_scale):
            parameter.grad = None
        warnings.warn(f"`graph` is off: {name} steps cannot be captured: {reason}", RunWarning, stacklevel=2)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
