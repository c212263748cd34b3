"""One train step and one hyper step, for every method (Algorithms 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ray_deltastn.methods.frozen import RunningStatistics, frozen
from ray_deltastn.methods.objective import Objective


@dataclass(frozen=True)
class StepOptions:
    """Options of the train step and the hyper step.

    Args:
        entropy_weight: τ.
        response_fraction: share of each minibatch that trains Θ, in (0, 1]. The paper uses 1.
        antithetic: train Θ on half as many examples, each under ε and under −ε. The paper draws one ε per example. The
            option has no effect if the share has fewer than four rows, or if all hyperparameters are `per="batch"`.
        tune_scale: whether hyper steps move σ.
        clip_grad: largest norm of the gradient of w₀, and of the gradient of Θ. None means no clipping.
    """

    entropy_weight: float = 1e-3
    response_fraction: float = 1.0
    antithetic: bool = False
    tune_scale: bool = True
    clip_grad: float | None = None


class Steps:
    """The updates of w₀, Θ, λ and σ.

    Args:
        objective: L_T and L_V of the task under the method.
        weights_optimizer: moves w₀.
        response_optimizer: moves Θ; None for a method without response.
        hyper_optimizer: moves λ, and σ if it is tuned; None for a method that tunes nothing.
        options: see `StepOptions`.
    """

    def __init__(
        self,
        objective: Objective,
        weights_optimizer: Optimizer,
        response_optimizer: Optimizer | None = None,
        hyper_optimizer: Optimizer | None = None,
        options: StepOptions | None = None,
    ) -> None:
        self.objective = objective
        self.weights_optimizer = weights_optimizer
        self.response_optimizer = response_optimizer
        self.hyper_optimizer = hyper_optimizer
        self.options = options or StepOptions()
        self.weights = [p for p in objective.model.parameters() if p.requires_grad]
        self.response = list(objective.response.parameters()) if objective.response is not None else []
        self._statistics = RunningStatistics(objective.model)

    def train_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Move w₀ and Θ on one minibatch; the model must be in training mode.

        Split methods move w₀ on L_T(λ, w₀) (3.9), then Θ on E_ε L_T(λ+ε, w₀+Θε) (3.10) at the *updated* w₀. Other
        methods move both on one perturbed pass (2.5).

        Args:
            x: inputs (B, …) on the training device.
            y: targets (B, …).

        Returns:
            The training objective before the step, a detached scalar.
        """
        objective = self.objective
        if objective.response is None or objective.method.split:
            loss = objective.train_loss(x, y)
            self._move(self.weights_optimizer, self.weights, torch.autograd.grad(loss, self.weights, allow_unused=True))
            if objective.response is not None:
                self._response_step(x, y)
            return loss.detach()
        assert self.response_optimizer is not None
        loss = objective.train_loss(x, y, self._perturbation(x.shape[0]))
        gradients = torch.autograd.grad(loss, [*self.weights, *self.response], allow_unused=True)
        self._move(self.weights_optimizer, self.weights, gradients[: len(self.weights)])
        self._move(self.response_optimizer, self.response, gradients[len(self.weights) :])
        return loss.detach()

    def response_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of E_ε L_T(λ+ε, w₀+Θε) (3.10) in Θ, on the share of a minibatch that trains Θ.

        Args:
            x: inputs (B, …) of the whole minibatch.
            y: targets (B, …).

        Returns:
            One gradient for each parameter in `response`, of the parameter's shape. None if the loss does not depend
            on the parameter.
        """
        rows = max(1, round(self.options.response_fraction * x.shape[0]))
        # With fewer than four rows batch normalisation would get the same example twice and no other example.
        paired = self.options.antithetic and rows >= 4 and self.objective.space.differs_in_a_batch
        if paired:
            # The gradient contains ∇L_T(λ, w₀)⊗ε, whose mean is zero. It has opposite signs in the two halves.
            rows = rows // 2 * 2
            x, y = torch.cat([x[: rows // 2]] * 2), torch.cat([y[: rows // 2]] * 2)
        elif rows < x.shape[0]:
            x, y = x[:rows], y[:rows]
        with frozen(self.weights), self._statistics.held():
            loss = self.objective.train_loss(x, y, self._perturbation(rows, paired))
            return torch.autograd.grad(loss, self.response, allow_unused=True)

    def _response_step(self, x: Tensor, y: Tensor) -> None:
        assert self.response_optimizer is not None
        self._move(self.response_optimizer, self.response, self.response_gradients(x, y))

    def hyper_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Move λ, and σ if it is tuned, on one validation minibatch; the model must be in evaluation mode.

        One backward pass gives ∇_λ and ∇_σ of E_ε L_V(λ+ε, w₀+Θ(λ−λ₀+ε)) − τ·H[p(ε|σ)] (Algorithm 1).

        Returns:
            The objective before the step, a detached scalar.
        """
        assert self.hyper_optimizer is not None
        space = self.objective.space
        moved = [space.lam, space.raw_scale] if self.options.tune_scale else [space.lam]
        with frozen(self.weights), frozen(self.response):
            eps = self.objective.sample(x.shape[0])
            loss = self.objective.hyper_loss(x, y, eps, self.options.entropy_weight)
            gradients = torch.autograd.grad(loss, moved)
        self._move(self.hyper_optimizer, moved, gradients, clip=False)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs besides weights and optimisers. These methods need none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""

    def _perturbation(self, rows: int, antithetic: bool = False) -> Tensor:
        with torch.no_grad():
            return self.objective.sample(rows, antithetic)

    def _move(
        self,
        optimizer: Optimizer,
        parameters: Sequence[torch.nn.Parameter],
        gradients: Sequence[Tensor | None],
        clip: bool = True,
    ) -> None:
        moved = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        found = [gradient for _, gradient in moved]
        if clip and self.options.clip_grad is not None:
            found = _clipped(found, self.options.clip_grad)
        for (parameter, _), gradient in zip(moved, found, strict=True):
            parameter.grad = gradient
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None


def _clipped(gradients: list[Tensor], most: float) -> list[Tensor]:
    # PyTorch's clip_grad_norm_ works in place. It is wrong here, because two parameters that are added to each other
    # share one gradient tensor.
    if not gradients:
        return []
    norms = torch._foreach_norm(gradients)
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return list(torch._foreach_div(gradients, (norm / most).clamp(min=1.0)))
