"""The training and validation objectives L_T and L_V, under any displacement of the hyperparameters.

| symbol | code    | shape  | meaning                                                            |
|--------|---------|--------|--------------------------------------------------------------------|
| λ, ε   | `lam`, `eps` | (h,), (B, h) | hyperparameters and their perturbation                    |
| δ      | `delta` | (B, h) | what the response is fed: ε + λ − λ₀ if centred, λ + ε if not      |
| ξ      | `pass_values.generator` | | randomness of dropout and augmentation                        |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ray_deltastn.methods.method import Method
from ray_deltastn.regularizers import Augmentation, PassValues, Penalty
from ray_deltastn.response import Response, Weights, linearised_forward, named_parameters
from ray_deltastn.space import HyperSpace

Loss = Callable[[Tensor, Tensor], Tensor]


class Objective:
    """L_T and L_V of one task under one method.

    Args:
        model: the network.
        loss: `loss(output, target)`, a mean () or one value per example (B,).
        valid_loss: the same for validation.
        space: the hyperparameters.
        pass_values: what the model's regularisers read.
        method: how the network predicts under a perturbation.
        response: Θ, or None for a method without response.
        augment: changes of the training inputs, in this order.
        penalty: terms of L_T in weights and hyperparameters.
        valid_penalty: the same for L_V, which then depends on λ directly (2.4).
        half: run the network under bfloat16 autocast; outputs, losses, penalties and parameters stay in their own type.
        channels_last: hand images to the network in channels-last order of memory.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        space: HyperSpace,
        pass_values: PassValues,
        method: Method,
        response: Response | None,
        *,
        valid_loss: Loss | None = None,
        augment: Sequence[Augmentation] = (),
        penalty: Sequence[Penalty] = (),
        valid_penalty: Sequence[Penalty] = (),
        half: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.half = half
        self.channels_last = channels_last
        self.model = model
        self.loss = loss
        self.valid_loss = valid_loss or loss
        self.space = space
        self.pass_values = pass_values
        self.method = method
        self.response = response
        self._parameters = named_parameters(model)
        self.augment = tuple(augment)
        self.penalty = tuple(penalty)
        self.valid_penalty = tuple(valid_penalty)
        #: Values of `fixed`, in the hyperparameters' own domain, (h,) in float64.
        self.constant: Tensor | None = None

    @property
    def generator(self) -> torch.Generator | None:
        """The run's random generator on the training device; None for PyTorch's default one."""
        return self.pass_values.generator

    def sample(self, rows: int, antithetic: bool = False) -> Tensor:
        """Perturbations ε (rows, h), differentiable in σ, see `HyperSpace.sample`."""
        return self.space.sample(rows, self.generator, antithetic)

    def current_values(self) -> Tensor:
        """Values of the hyperparameters now, (h,) in float64."""
        if self.constant is not None:
            return self.constant
        with torch.no_grad():
            return self.space.values()

    def delta(self, lam: Tensor, eps: Tensor | None) -> Tensor | None:
        """δ for hyperparameters λ perturbed by ε: (B, h), (1, h), or None where nothing is displaced.

        λ₀ is λ itself, held constant: the value of λ − λ₀ is zero, its gradient is not. So it is in every hyper step,
        also when several follow each other: w₀ stays where the train steps left it.
        """
        if self.response is None:
            return None
        if self.method.centered:
            displacement = (lam - lam.detach())[None] if lam.requires_grad else None
            if eps is None:
                return displacement
            return eps if displacement is None else eps + displacement
        return lam[None] if eps is None else lam + eps

    def predict(self, x: Tensor, delta: Tensor | None, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Output of the network displaced by δ, in the way of the method; `weights` stand in for w₀ by name."""
        x = self.in_order(x)
        with self.precision(x):
            if weights is not None:
                output = functional_call(self.model, self._standing_in(weights), (x,))
            elif delta is None or self.response is None:
                output = self.model(x)
            elif self.method.linearized:
                output = linearised_forward(self.model, x, self.response, delta)
            else:
                with self.response.displaced(delta):
                    output = self.model(x)
        if not isinstance(output, Tensor):
            raise TypeError(f"the model's output must be a tensor, got {type(output).__name__}")
        return output.float() if self.half else output

    def in_order(self, x: Tensor) -> Tensor:
        """Inputs in the order of memory that the network is to see; their values are the same."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def precision(self, x: Tensor) -> AbstractContextManager[Any]:
        """The arithmetic of a pass of the network on `x`."""
        return torch.autocast(x.device.type, torch.bfloat16) if self.half else nullcontext()

    def train_loss(
        self,
        x: Tensor,
        y: Tensor,
        eps: Tensor | None = None,
        *,
        lam: Tensor | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """L_T(λ+ε, w) on a minibatch, w the weights displaced by ε; with `eps=None` L_T(λ, w₀) (Eqns. 2.5, 3.9, 3.10).

        Args:
            x: inputs (B, …), not yet augmented.
            y: targets (B, …).
            eps: perturbation (B, h).
            lam: λ (h,) to differentiate in; by default the current λ, and no gradient reaches it.
            weights: what stands in for w₀, by name.

        Returns:
            The objective, a scalar. No gradient reaches σ.
        """
        with torch.set_grad_enabled(lam is not None):
            at = self.space.lam.detach() if lam is None else lam
            values = self.constant if self.constant is not None else self.space.values(at if eps is None else at + eps)
            named = self.space.named(values)
        delta = self.delta(at, eps)
        self.pass_values.values = named
        try:
            for augmentation in self.augment:
                x = augmentation(x, self.pass_values)
            output = self.predict(x, delta, weights)
        finally:
            self.pass_values.values = {}
        loss = _mean(self.loss(output, y), x.shape[0])
        return self._penalised(loss, self.penalty, named, delta, weights)

    def valid_objective(self, x: Tensor, y: Tensor, lam: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """L_V(λ, w) on a minibatch without perturbation, differentiable in λ, on which it may depend directly, and w.

        Args:
            x: inputs (B, …).
            y: targets (B, …).
            lam: λ (h,).
            weights: what stands in for w₀, by name.
        """
        loss = _mean(self.valid_loss(self.predict(x, None, weights), y), x.shape[0])
        named = self.space.named(self.space.values(lam)) if self.valid_penalty else {}
        return self._penalised(loss, self.valid_penalty, named, None, weights)

    def hyper_loss(self, x: Tensor, y: Tensor, eps: Tensor, entropy_weight: float) -> Tensor:
        """E_ε[L_V(λ+ε, w)] − τ·H[p(ε|σ)] on a minibatch, differentiable in λ and σ (Eqn. 2.7).

        Args:
            x: inputs (B, …).
            y: targets (B, …).
            eps: perturbation (B, h), differentiable in σ.
            entropy_weight: τ.
        """
        lam = self.space.lam
        delta = self.delta(lam, eps)
        loss = _mean(self.valid_loss(self.predict(x, delta), y), x.shape[0])
        if self.valid_penalty:
            named = self.space.named(self.space.values(lam + eps))
            loss = self._penalised(loss, self.valid_penalty, named, delta)
        return loss - entropy_weight * self.space.entropy()

    def _penalised(
        self,
        loss: Tensor,
        penalties: Sequence[Penalty],
        named: dict[str, Tensor],
        delta: Tensor | None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        if penalties:
            every = self._parameters if parameters is None else self._standing_in(parameters)
            weights = Weights(self.model, self.response, delta, every)
            for penalty in penalties:
                term = penalty(named, weights)
                loss = loss + (term.mean() if term.dim() else term)
        return loss

    def _standing_in(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All parameters by name, those given replaced, tied ones under each of their names."""
        replaced = {id(self._parameters[name]): weight for name, weight in weights.items()}
        return {name: replaced.get(id(p), p) for name, p in self._parameters.items()}


def _mean(loss: Tensor, batch: int) -> Tensor:
    if loss.dim() == 0:
        return loss
    if loss.shape != (batch,):
        raise ValueError(f"`loss` must return a scalar or shape ({batch},), got shape {tuple(loss.shape)}")
    return loss.mean()
