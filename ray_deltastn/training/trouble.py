"""Where the numbers of a diverged run first stopped being finite: the step, and the module in it.

No number is read while a run trains. When a report is not finite, the losses since the last report tell the first step
that failed. Its minibatch is drawn again, because a minibatch is a function of its position, and passes with hooks look
for the first module with a number that is not finite: forward, backward, then the tangent of the linearised network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from ray_deltastn.methods import Objective, RunningStatistics
from ray_deltastn.response.linearise import rules
from ray_deltastn.response.trees import called, rows, tensors
from ray_deltastn.training.misfits import MISFITS
from ray_deltastn.training.random_state import isolated
from ray_deltastn.training.streams import Stream

#: Losses that are kept as single tensors; more are put into one.
SINGLE = 1024
#: Train steps before a failed hyper step that are looked at.
RECENT = 64


class Losses:
    """The losses of the steps since the last report, which stay on the device."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._single: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Note the loss of a step, without waiting for the device."""
        self._single.append(loss)
        if len(self._single) == SINGLE:
            self._parts.append(torch.stack(self._single))
            self._single = []

    def __len__(self) -> int:
        return len(self._parts) * SINGLE + len(self._single)

    def first_bad(self) -> int | None:
        """Index of the first loss that is not finite; None if all are finite."""
        every = [*self._parts, *([torch.stack(self._single)] if self._single else [])]
        values = [value for part in every for value in part.tolist()]
        return next((index for index, value in enumerate(values) if not math.isfinite(value)), None)


class Trouble:
    """Finds the module of a diverged run.

    Args:
        objective: the objective, with its model and response.
        train: training data.
        valid: validation data.
    """

    def __init__(self, objective: Objective, train: Stream, valid: Stream) -> None:
        self.objective, self._train, self._valid = objective, train, valid
        self.reset()

    def reset(self) -> None:
        """Start a new report."""
        self._train_losses, self._hyper_losses = Losses(), Losses()
        self._hyper_after: list[int] = []  # train steps before each hyper step

    def train_step(self, loss: Tensor) -> None:
        """Note the loss of a train step."""
        self._train_losses.add(loss)

    def hyper_step(self, loss: Tensor) -> None:
        """Note the loss of a hyper step."""
        self._hyper_losses.add(loss)
        self._hyper_after.append(len(self._train_losses))

    def found(self, steps: int, weights: Mapping[str, Tensor]) -> str:
        """What was first not finite, as the end of a sentence; empty if no pass shows it.

        Args:
            steps: train steps taken so far.
            weights: a finite network by name, used if the present one is not finite; if it is empty, random numbers
                take the places of the numbers that are not finite.
        """
        objective = self.objective
        state = None if objective.generator is None else objective.generator.get_state()
        try:
            with isolated(0, objective.space.lam.device), _finite(objective, weights) as bad:
                what = self._look(steps - len(self._train_losses), bool(bad)) or bad
        except (*MISFITS, TypeError):  # a pass that fails must not hide that the run has diverged
            return ""
        finally:
            if objective.generator is not None and state is not None:
                objective.generator.set_state(state)
        return f"; first not finite: {what}" if what else ""

    def _look(self, begun: int, spoiled: bool) -> str:
        """Look at the steps that failed first.

        Args:
            begun: train steps before the last report.
            spoiled: whether a weight or the response is not finite.
        """
        train, hyper = self._train_losses.first_bad(), self._hyper_losses.first_bad()
        last = len(self._train_losses) if train is None else train
        steps = list(range(max(-begun, last - 1), min(last + 1, len(self._train_losses))))
        if hyper is not None and (train is None or self._hyper_after[hyper] <= train):
            after = self._hyper_after[hyper]
            found = self._in_batch(*_drawn(self._valid, hyper - len(self._hyper_losses)), training=False)
            if found:
                return f"{found}, in the hyper step after train step {begun + after}"
            # A train step that has spoiled the response shows in the next hyper step only.
            steps = list(range(max(-begun, after - RECENT), after))
        for index in steps if spoiled or train is not None else ():
            found = self._in_batch(*_drawn(self._train, index - len(self._train_losses)), training=True)
            if found:
                return f"{found}, in train step {begun + index + 1}"
        if train is None and hyper is None:
            for x, y in self._valid.in_order():
                found = self._in_batch(x, y, training=False, forward_only=True)
                if found:
                    return f"{found}, in the evaluation on `{self._valid.name}`"
                self.objective.carry(x)
        return ""

    def _in_batch(self, x: Any, y: Any, training: bool, forward_only: bool = False) -> str:
        """What is first not finite on a minibatch."""
        for name, part in (("inputs", x), ("targets", y)):
            if _is_bad(part):
                return f"the {name} of the minibatch"
        objective = self.objective
        model, was_training = objective.model, objective.model.training
        model.train(training)
        try:
            with RunningStatistics(model).held(), torch.enable_grad():
                with _watched(model) as events:
                    lam = objective.space.lam.detach()
                    loss = objective.train_loss(x, y) if training else objective.valid_objective(x, y, lam)
                    if not events and not loss.isfinite().all():
                        return "the loss"
                    if not events and not forward_only:
                        weights = [p for p in model.parameters() if p.requires_grad]
                        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
                        names = {id(p): name for name, p in model.named_parameters()}
                        for p, gradient in zip(weights, gradients, strict=True):
                            if not events and gradient is not None and not gradient.isfinite().all():
                                events.append(f"the gradient of '{names[id(p)]}'")
                if not events and not forward_only and objective.method.linearized and objective.response is not None:
                    events += self._tangents(x)
                return events[0] if events else ""
        finally:
            model.train(was_training)

    def _tangents(self, x: Any) -> list[str]:
        """What is first not finite in the tangent along random changes of the rows, and in its backward pass."""
        objective, response = self.objective, self.objective.response
        assert response is not None
        model = objective.model
        model.eval()
        generator = torch.Generator().manual_seed(0)
        count = rows(x) if objective.space.differs_in_a_batch else 1
        changes = 0.1 * torch.randn(count, len(response.U), generator=generator)
        changes = changes.to(response.U).requires_grad_()
        with ExitStack() as stack:
            stack.enter_context(fwAD.dual_level())
            stack.enter_context(objective.precision())
            stack.enter_context(response.displaced_rows(changes, linearised=True))
            stack.enter_context(rules(response))
            events = stack.enter_context(_watched(model, of_tangents=True))
            output = called(model, objective.in_order(x))
            found = [fwAD.unpack_dual(t).tangent for t in tensors(output) if t.is_floating_point()]
            kept = [t for t in found if t is not None and t.requires_grad]
        if not events and kept:
            torch.autograd.grad(torch.stack([t.float().sum() for t in kept]).sum(), changes, allow_unused=True)
        return events


def _drawn(stream: Stream, back: int) -> tuple[Any, Any]:
    """The minibatch that a stream gave |back| minibatches ago; if it carries a state, with the first state."""
    length = len(stream)
    number = stream.pass_number * length + stream.position + back
    again = copy.copy(stream)
    again.load_state_dict({"pass_number": number // length, "position": number % length})
    return again.next()


@contextmanager
def _finite(objective: Objective, weights: Mapping[str, Tensor]) -> Iterator[str]:
    """Put finite numbers into a model, its response and λ within the context, and tell where the first others were."""
    state = {f"the parameter '{name}'": value for name, value in objective.model.state_dict().items()}
    given = {f"the parameter '{name}'": value for name, value in weights.items()}
    if objective.response is not None:
        state |= {f"the response ('{name}')": value for name, value in objective.response.state_dict().items()}
    bad = [name for name, value in state.items() if not value.isfinite().all()]
    state |= {name: p.detach() for name, p in (("λ", objective.space.lam), ("σ", objective.space.raw_scale))}
    kept = {name: value.clone() for name, value in state.items() if value.is_floating_point()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in kept.items():
            noise = 0.1 * torch.randn(value.shape, generator=generator).to(value)
            state[name].copy_(given.get(name, value) if bad else value)
            state[name].copy_(torch.where(state[name].isfinite(), state[name], noise))
    try:
        yield bad[0] if bad else ""
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                state[name].copy_(value)


def _is_bad(tree: Any) -> bool:
    """Whether a number is NaN or +∞; masks hold −∞ for good."""
    return any(bool((t.isnan() | t.isposinf()).any()) for t in tensors(tree) if t.is_floating_point())


@contextmanager
def _watched(model: nn.Module, of_tangents: bool = False) -> Iterator[list[str]]:
    """Context that notes the modules whose inputs, outputs or gradients, or those of their tangents, are not finite."""
    events: list[str] = []
    names = {module: f"layer '{name}' ({type(module).__name__})" for name, module in model.named_modules() if name}
    names[model] = f"the model ({type(model).__name__})"
    what = " in the tangent" if of_tangents else ""

    def seen(tree: Any) -> list[Tensor]:
        found = [t for t in tensors(tree) if t.is_floating_point()]
        if not of_tangents:
            return found
        pairs = (fwAD.unpack_dual(t).tangent for t in found)
        return [t for t in pairs if t is not None]

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not events and _is_bad(seen([args, kwargs])):
            events.append(f"the inputs{what} of {names[module]}")

    def after(module: nn.Module, args: Any, output: Any) -> None:
        found = seen(output)
        if not events and _is_bad(found):
            events.append(f"the output{what} of {names[module]}")
        for t in found:
            if t.requires_grad:
                t.register_hook(lambda gradient: back(module, gradient))

    def back(module: nn.Module, gradient: Tensor) -> None:
        if not events and not gradient.isfinite().all():
            events.append(f"the gradient{what} in the output of {names[module]}")

    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in names]
    handles += [module.register_forward_hook(after) for module in names]
    try:
        yield events
    finally:
        for handle in handles:
            handle.remove()
