"""Train and hyper steps as CUDA graphs: one launch each, in place of hundreds that the host makes one by one."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ray_deltastn.methods.steps import Steps

#: Steps on minibatches of one shape that run as they are before the next one is captured: libraries choose their
#: kernels, optimisers make their buffers.
EAGER = 3

Run = Callable[[], Tensor]


class Recorder(Protocol):
    """What can capture a step."""

    def eager(self, run: Run) -> Tensor:
        """Run a step as it is, where steps are captured later."""
        ...

    def record(self, run: Run) -> Run:
        """Capture a step without executing it; what comes back executes it, on the same tensors each time."""
        ...


class CudaRecorder:
    """Captures CUDA graphs.

    Args:
        device: the training device.
        generators: the explicit generators that a step draws from; PyTorch's default one is always captured.
    """

    def __init__(self, device: torch.device, generators: list[torch.Generator]) -> None:
        self.device = device
        self.generators = generators
        self.stream = torch.cuda.Stream(device)

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

    def record(self, run: Run) -> Run:
        """Capture a step as a graph."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self.stream):
            result = run()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class _Captured:
    """One step, captured for minibatches of one shape."""

    def __init__(self, recorder: Recorder, step: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> None:
        self.x, self.y = x.clone(), y.clone()
        self.replay = recorder.record(lambda: step(self.x, self.y))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.x.copy_(x)
        self.y.copy_(y)
        # The next replay writes over the graph's own result.
        return self.replay().clone()


class GraphedSteps(Steps):
    """The same updates of w₀, Θ, λ and σ, each step captured once per shape of its minibatch and replayed.

    A graph holds the numbers of the moment it was captured: learning rates and the row of constant hyperparameters.
    Where one of them changes, the steps are captured anew. Capturing executes nothing, so no step is taken twice.

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
        self.recorder: Recorder | None = recorder
        self.must = must
        self._seen: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, _Captured] = {}
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

    def _run(self, name: str, step: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        if self.recorder is None:
            return step(x, y)
        constants = self._now()
        if constants != self._constants:
            self._captured.clear()
            self._constants = constants
        key = (name, x.shape, x.dtype, y.shape, y.dtype)
        if key not in self._captured:
            if self._seen[key] < EAGER:
                self._seen[key] += 1
                return self.recorder.eager(lambda: step(x, y))
            try:
                self._captured[key] = _Captured(self.recorder, step, x, y)
            except Exception as error:
                if self.must:
                    raise RuntimeError(
                        f"`graph` must be off for a {name} step that cannot be captured: {error}"
                    ) from error
                self._give_up(name, error)
                return step(x, y)
        return self._captured[key](x, y)

    def _now(self) -> Hashable:
        """What a graph takes as constant."""
        optimizers = (self.weights_optimizer, self.response_optimizer, self.hyper_optimizer)
        rates = tuple(group["lr"] for o in optimizers if o is not None for group in o.param_groups)
        row = self.objective.constant
        return rates, None if row is None else row.data_ptr()

    def _give_up(self, name: str, error: Exception) -> None:
        self.recorder = None
        self._captured.clear()
        space = self.objective.space
        for parameter in (*self.weights, *self.response, space.lam, space.raw_scale):
            parameter.grad = None
        warnings.warn(f"no CUDA graphs: a {name} step cannot be captured ({error})", stacklevel=2)
