"""Changes of λ's step that are not options of the package: each rebuilds a tuner before its first step.

Each is known to help somewhere: `benchmarks.headroom.study` measures them. The package keeps those that do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Sampler, TensorDataset

import ray_deltastn as rd
from benchmarks.headroom.problems import Split, Splits
from ray_deltastn.methods.steps import Steps

#: Hyper steps whose hypergradients are added up before a step by the sign.
SEGMENT = 10
#: Decay of the averages of w₀ and Θ, for each train step.
AVERAGE = 0.99
#: Decay of both averages of a step in proportion to the signal to noise, for each hyper step.
NOISE_DECAY = 0.95


class _StepsOfLambda(Optimizer):
    """Moves λ by a rule of its own and leaves σ to another optimiser.

    Args:
        inner: the optimiser of λ and σ; its first group is λ.
    """

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        # The learning rates are those of `inner`, which the tuner changes.
        self.param_groups = inner.param_groups

    def direction(self, gradient: Tensor) -> Tensor | None:
        """The move of λ in units of its learning rate; None means no move."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move σ as before, and λ by `direction`."""
        lam = self.param_groups[0]["params"][0]
        gradient, lam.grad = lam.grad, None
        self.inner.step()
        move = self.direction(gradient)
        if move is not None:
            lam.sub_(self.param_groups[0]["lr"] * move)


class Signs(_StepsOfLambda):
    """Holds λ over a segment, then moves it by the signs of the summed hypergradients (Micaelli and Storkey 2021)."""

    total: Tensor | None = None
    count = 0

    def direction(self, gradient: Tensor) -> Tensor | None:
        """Once for each `SEGMENT`: as far as the steps of a segment reach."""
        self.total = gradient.clone() if self.total is None else self.total + gradient
        self.count += 1
        if self.count % SEGMENT:
            return None
        move, self.total = SEGMENT * self.total.sign(), None
        return move


class SignalToNoise(_StepsOfLambda):
    """Steps m/√v with the running means m of the gradient and v of its square: small where the gradient is noise."""

    mean: Tensor | None = None
    square: Tensor | None = None
    count = 0

    def direction(self, gradient: Tensor) -> Tensor:
        """m/√v, both without the bias of their start at zero."""
        zero = torch.zeros_like(gradient)
        self.mean = (zero if self.mean is None else self.mean).lerp(gradient, 1 - NOISE_DECAY)
        self.square = (zero if self.square is None else self.square).lerp(gradient**2, 1 - NOISE_DECAY)
        self.count += 1
        unbiased = 1 - NOISE_DECAY**self.count
        return (self.mean / unbiased) / ((self.square / unbiased).sqrt() + 1e-12)


def _steps(tuner: rd.SelfTuner) -> Steps:
    assert isinstance(tuner.algorithm, Steps), "these changes need `graph: off`"
    return tuner.algorithm


def signs(tuner: rd.SelfTuner) -> None:
    """λ moves by the signs of summed hypergradients."""
    steps = _steps(tuner)
    assert steps.hyper_optimizer is not None
    steps.hyper_optimizer = Signs(steps.hyper_optimizer)


def signal_to_noise(tuner: rd.SelfTuner) -> None:
    """λ moves in proportion to the signal to noise of its hypergradient."""
    steps = _steps(tuner)
    assert steps.hyper_optimizer is not None
    steps.hyper_optimizer = SignalToNoise(steps.hyper_optimizer)


def averaged(tuner: rd.SelfTuner) -> None:
    """Hyper steps see averages of w₀ and Θ over about 1 / (1 − `AVERAGE`) train steps."""
    steps = _steps(tuner)
    moved: list[Tensor] = [*steps.weights, *steps.response]
    means = [p.detach().clone() for p in moved]
    train_step, hyper_step = steps.train_step, steps.hyper_step

    def train(x: Tensor, y: Tensor) -> Tensor:
        loss = train_step(x, y)
        with torch.no_grad():
            torch._foreach_lerp_(means, moved, 1 - AVERAGE)
        return loss

    def hyper(x: Tensor, y: Tensor) -> Tensor:
        kept = [p.detach().clone() for p in moved]
        with torch.no_grad():
            torch._foreach_copy_(moved, means)
            try:
                with torch.enable_grad():
                    return hyper_step(x, y)
            finally:
                torch._foreach_copy_(moved, kept)

    steps.train_step, steps.hyper_step = train, hyper  # type: ignore[method-assign]


def rising(tuner: rd.SelfTuner) -> None:
    """The rates of λ and σ rise linearly over the first half of the run, and fall as before."""
    optimizers = tuner.optimizers
    set_share = optimizers.set_hyper_share
    half = tuner.total_steps / 2
    optimizers.set_hyper_share = lambda share: set_share(share * min(1.0, tuner.steps / half))  # type: ignore[method-assign]


class Rotating(Sampler[int]):
    """Rows of training and validation data together, of which one part is held out; the part changes each pass.

    Args:
        total: number of rows.
        parts: number of parts.
        held_out: whether to give the rows of the part, or the others.
        turn: passes over the training data begun so far, shared by both samplers.
    """

    def __init__(self, total: int, parts: int, held_out: bool, turn: list[int]) -> None:
        self.total, self.parts, self.held_out, self.turn = total, parts, held_out, turn

    def __len__(self) -> int:
        part = self.total // self.parts
        return part if self.held_out else self.total - part

    def __iter__(self) -> Iterator[int]:
        part = self.total // self.parts
        first = (self.turn[0] % self.parts) * part
        if not self.held_out:
            self.turn[0] += 1
            first = (self.turn[0] % self.parts) * part
        inside = set(range(first, first + part))
        for row in torch.randperm(self.total).tolist():
            if (row in inside) == self.held_out:
                yield row


def rotating(splits: Splits, batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of training and validation data whose rows take turns, in parts as large as the validation data."""
    train, valid, _ = splits
    both: Split = (torch.cat([train[0], valid[0]]), torch.cat([train[1], valid[1]]))
    total, parts = len(both[0]), math.ceil(len(both[0]) / len(valid[0]))
    turn = [-1]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(total))
    data = TensorDataset(both[0][order], both[1][order])

    def loader(held_out: bool) -> DataLoader[Any]:
        return DataLoader(data, batch_size, sampler=Rotating(total, parts, held_out, turn))

    return loader(False), loader(True)
