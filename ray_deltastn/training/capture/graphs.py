"""Train and hyper steps that are captured once and replayed.

In a small network the host takes most of the time: in each step it chooses the same hundred operations again. Each step
is captured by itself, not the whole cycle of train and hyper steps. So the intervals, the warm-up, and the place of the
smaller last minibatch in a cycle make no difference. This costs a copy of the minibatch and a few calls for each step.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ray_deltastn.methods import Steps
from ray_deltastn.response.trees import mapped, tensors
from ray_deltastn.training.capture.recorders import Recorder, TraceRecorder
from ray_deltastn.training.streams import once
from ray_deltastn.training.warned import RunWarning

#: Eager steps on minibatches of one shape before the next step is captured. In these steps libraries choose their
#: kernels, and optimisers make their buffers.
EAGER = 3
#: Largest number of shapes of minibatches that are captured, for each kind of step; each capture holds memory.
SHAPES = 4

Step = Callable[[Any, Any], Tensor]


class _Captured:
    """One step, captured for minibatches of one structure and shape."""

    def __init__(self, recorder: Recorder, step: Step, x: Any, y: Any, carries: bool, hyper: Sequence[Tensor]) -> None:
        own = once(torch.clone)  # inputs and targets may share tensors
        self.x, self.y = mapped(own, x), mapped(own, y)
        self.leaves = tensors((self.x, self.y))
        self.carries = carries
        self.hyper: Sequence[Tensor] | None = [t.clone() for t in hyper] if recorder.compares else None
        self.recording = recorder.record(lambda: step(self.x, self.y))
        self.compared = not recorder.compares

    def moved(self, hyper: Sequence[Tensor]) -> bool:
        """Whether λ, σ or the constants differ for the first time from those of the recording.

        A number that depends on nothing else is a constant of the capture if Python read it. A replay with the same λ
        cannot show that.
        """
        return self.hyper is not None and not all(map(torch.equal, self.hyper, hyper))

    def __call__(self, x: Any, leaves: Sequence[Tensor]) -> Tensor:
        assert self.recording.replay is not None
        for mine, theirs in zip(self.leaves, leaves, strict=True):
            mine.copy_(theirs)
        # The next replay of a graph overwrites its result.
        result = self.recording.replay().clone()
        self.give_back(x)
        return result

    def give_back(self, x: Any) -> None:
        """Write the state that the step has left into the state of the inputs, if they have one."""
        if self.carries:
            for theirs, mine in zip(tensors(x[1]), tensors(self.x[1]), strict=True):
                theirs.copy_(mine)


class GraphedSteps:
    """The updates of `Steps`, each step captured once per structure and shape of its minibatch and replayed.

    A capture holds the numbers of its moment: learning rates and other options of the optimisers. If one of them
    changes, the steps of the kind that uses it are captured again. No step is taken twice.

    Args:
        steps: the steps to capture.
        recorder: captures.
        must: raise if a step cannot be captured; otherwise warn and continue with eager steps.

    Raises:
        RuntimeError: from a step that cannot be captured, if it must be.
    """

    def __init__(self, steps: Steps, recorder: Recorder, must: bool) -> None:
        self.steps = steps
        self.objective = steps.objective
        used = {
            "train": (steps.weights_optimizer, steps.response_optimizer),
            "hyper": (steps.hyper_optimizer,),
        }
        self._optimizers = {name: [one for one in some if one is not None] for name, some in used.items()}
        self.recorder = recorder
        self.must = must
        self._refused: set[str] = set()
        # The places of the buffers, not the buffers: a module may replace a buffer.
        self._buffers = [(m._buffers, name) for m in self.objective.model.modules() for name in m._buffers]
        self._seen: Counter[tuple[Hashable, ...]] = Counter()
        self._captured: dict[tuple[Hashable, ...], _Captured] = {}
        self._constants: dict[str, tuple[Hashable, ...]] = {}

    def train_step(self, x: Any, y: Any) -> Tensor:
        """Move w₀ and Θ on one minibatch; the model must be in training mode."""
        return self._run("train", self.steps.train_step, x, y)

    def hyper_step(self, x: Any, y: Any) -> Tensor:
        """Move λ, and σ if tuned, on one validation minibatch; the model must be in evaluation mode."""
        return self._run("hyper", self.steps.hyper_step, x, y)

    def state_dict(self) -> dict[str, Any]:
        """What the steps need to continue; captures are made again."""
        return self.steps.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; optimisers make new buffers when they load one, so all captures are dropped."""
        self.steps.load_state_dict(state)
        self._captured.clear()
        self._seen.clear()

    @property
    def captured(self) -> bool:
        """Whether steps of every kind that has been taken are replayed now."""
        kinds = {key[0] for key in self._seen}
        return bool(kinds) and not self._refused and kinds == {key[0] for key in self._captured}

    def _run(self, name: str, step: Step, x: Any, y: Any) -> Tensor:
        if name in self._refused:
            return step(x, y)
        plain = isinstance(x, Tensor) and isinstance(y, Tensor)
        leaves, structure = ([x, y], None) if plain else tree_flatten((x, y))
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            reason = "inputs and targets must hold tensors only for a capture"
            if self.must:
                raise RuntimeError(f"`graph` must be off, {name} steps cannot be captured: {reason}")
            self._give_up(name, reason)
            return step(x, y)
        constants, before = self._now(name), self._constants.get(name, ())
        if constants != before:
            self._captured = {key: captured for key, captured in self._captured.items() if key[0] != name}
            if before and constants[1:] != before[1:]:  # optimisers may make new buffers
                self._seen = Counter({key: count for key, count in self._seen.items() if key[0] != name})
            self._constants[name] = constants
        key = (name, structure, *((leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves))
        if key not in self._captured:
            self._seen[key] += 1
            if self._seen[key] <= EAGER or sum(other[0] == name for other in self._captured) >= SHAPES:
                return self.recorder.eager(lambda: step(x, y))
            return self._capture(key, name, step, x, y, leaves)
        captured = self._captured[key]
        moved = captured.hyper is not None and captured.moved(self._hyper)
        if not captured.compared or moved:
            captured.hyper = None if moved else captured.hyper
            return self._compare(captured, name, step, x, y, leaves)
        return captured(x, leaves)

    @property
    def _hyper(self) -> list[Tensor]:
        """λ and σ, or the constants of a method that tunes nothing."""
        space, constant = self.objective.space, self.objective.constant
        return [space.lam.detach(), space.raw_scale.detach()] if constant is None else [constant]

    def _compare(self, captured: _Captured, name: str, step: Step, x: Any, y: Any, leaves: Sequence[Tensor]) -> Tensor:
        """Replay a step, undo it, take the eager step, and compare: the first replay, and the first with another λ."""
        state, generator = self._state(x), self.objective.generator
        before = [tensor.clone() for tensor in state]
        draws = [(g, g.get_state()) for g in (torch.default_generator, generator) if g is not None]
        error = ""
        try:
            replayed = [captured(x, leaves), *(tensor.clone() for tensor in state)]
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

    def _state(self, x: Any) -> list[Tensor]:
        """All tensors that a step on these inputs may change."""
        objective = self.objective
        kept = [t for some in self._optimizers.values() for o in some for s in o.state.values() for t in s.values()]
        found = [*objective.model.parameters(), *objective.model.buffers(), *self.steps.response]
        found += tensors(x[1]) if objective.carries else []
        return [*found, objective.space.lam, objective.space.raw_scale, *(t for t in kept if isinstance(t, Tensor))]

    def _capture(
        self, key: tuple[Hashable, ...], name: str, step: Step, x: Any, y: Any, leaves: Sequence[Tensor]
    ) -> Tensor:
        """Take a step, and keep its capture if it can be captured."""
        try:
            captured = _Captured(self.recorder, step, x, y, self.objective.carries, self._hyper)
            reason, result = captured.recording.reason, captured.recording.result
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if isinstance(self.recorder, TraceRecorder):
                raise  # the error is the step's
            # The error that broke the capture is the context of the error at its end.
            reason, result = _first_line(error.__context__ or error), None
            # The other graphs draw from the generators' old state.
            self._captured.clear()
        if not reason:
            self._captured[key] = captured
        elif self.must:
            raise RuntimeError(f"`graph` must be off, {name} steps cannot be captured: {reason}")
        else:
            self._give_up(name, reason)
        if result is not None:  # the capture has taken the step
            captured.give_back(x)
            return result
        return step(x, y) if reason else captured(x, leaves)

    def _now(self, name: str) -> tuple[Hashable, ...]:
        """The values that captures of one kind of step hold as constants. Those that change most often come first."""
        rates: list[Hashable] = []
        rest: list[Hashable] = [self.steps.options]
        for optimizer in self._optimizers[name]:
            for group in optimizer.param_groups:
                rates.append(group["lr"])
                rest += [value for option, value in group.items() if option not in ("params", "lr")]
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
