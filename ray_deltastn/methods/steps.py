"""One train step and one hyper step, for every method (Algorithms 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ray_deltastn.methods.frozen import RunningStatistics, frozen
from ray_deltastn.methods.objective import Objective
from ray_deltastn.methods.workers import Workers
from ray_deltastn.response.trees import repeated, rows, split, taken

#: How a hyper step predicts under ε.
HyperPass = Literal["linearized", "network", "unperturbed"]
#: Names under which PyTorch's optimisers keep an average of gradients.
_MOMENTS = ("exp_avg", "momentum_buffer")


@dataclass(frozen=True)
class StepOptions:
    """Options of the train step and the hyper step.

    Args:
        entropy_weight: τ.
        response_fraction: share of each minibatch that trains Θ, in (0, 1]. The paper uses 1. The examples of a smaller
            share are drawn anew at each step.
        antithetic: train Θ on half as many examples, each under ε and under −ε. The paper draws one ε per example.
            Entries of ε for hyperparameters with `per="batch"` keep their sign. The option has no effect if the share
            has fewer than four rows, or if all hyperparameters are `per="batch"`. With `sub_batches`, every second part
            has the negative ε of the part before.
        perturbations: number of perturbations ε of each example that trains Θ. The paper uses 1.
        sub_batches: number of parts into which the examples that train Θ are split. With more than one, each part is a
            pass of its own, its examples share one ε, and batch normalisation has the statistics of the part.
        per_scale: train Θ as the response to ε/σ, whose covariance is the identity: the gradient of U is divided by σ²,
            and its norm is that of the gradient in Θ·diag(σ). The paper trains Θ as the response to ε.
        hyper_pass: how a hyper step predicts under ε. `linearized`: as the method, f(x, w₀) + J_yw Θ(ε + λ − λ₀)
            (Algorithm 1). `network`: f(x, w₀ + Θ(ε + λ − λ₀)). `unperturbed`: ε = 0. All agree to first order in ε.
        tune_scale: whether hyper steps move σ.
        clip_grad: largest norm of the gradient of w₀, and of the gradient of Θ. None means no clipping.
        response_clip: largest norm of the gradient of Θ, besides `clip_grad`. None means no second limit.
        hyper_clip: largest move of each entry of λ and of softplus⁻¹(σ) in a hyper step, in units of its learning rate.
            None means no limit.
    """

    entropy_weight: float = 1e-3
    response_fraction: float = 1.0
    antithetic: bool = False
    perturbations: int = 1
    sub_batches: int = 1
    per_scale: bool = False
    hyper_pass: HyperPass = "linearized"
    tune_scale: bool = True
    clip_grad: float | None = None
    response_clip: float | None = None
    hyper_clip: float | None = None


class Steps:
    """The updates of w₀, Θ, λ and σ.

    If the network carries state, a step writes the state that an unperturbed pass leaves into the state of its inputs,
    after its backward passes. So each pass over a minibatch begins at the state that an unperturbed pass left after the
    minibatch before, without a gradient through it. What a perturbed pass leaves is not carried.

    Args:
        objective: L_T and L_V of the task under the method.
        weights_optimizer: moves w₀.
        response_optimizer: moves Θ; None for a method without response.
        hyper_optimizer: moves λ, and σ if it is tuned; None for a method that tunes nothing.
        options: see `StepOptions`.
        workers: processes over which gradients and losses are averaged before they are clipped; None for one process.
    """

    def __init__(
        self,
        objective: Objective,
        weights_optimizer: Optimizer,
        response_optimizer: Optimizer | None = None,
        hyper_optimizer: Optimizer | None = None,
        options: StepOptions | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.objective = objective
        self.workers = workers
        self.weights_optimizer = weights_optimizer
        self.response_optimizer = response_optimizer
        self.hyper_optimizer = hyper_optimizer
        self.options = options or StepOptions()
        self.weights = [p for p in objective.model.parameters() if p.requires_grad]
        self.response = list(objective.response.parameters()) if objective.response is not None else []
        self._statistics = RunningStatistics(objective.model)

    def train_step(self, x: Any, y: Any) -> Tensor:
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
            left = objective.left
            found = torch.autograd.grad(loss, self.weights, allow_unused=True)
            gradients, loss = self._averaged(found, self.weights, loss, rows(x))
            self._move(self.weights_optimizer, self.weights, gradients, self.options.clip_grad)
            if objective.response is not None:
                self.response_step(x, y)
            objective.carry(x, left)
            return loss
        assert self.response_optimizer is not None
        loss = objective.train_loss(x, y, self._perturbation(rows(x)))
        both = [*self.weights, *self.response]
        found = torch.autograd.grad(loss, both, allow_unused=True)
        if objective.carries:
            with torch.no_grad(), self._statistics.held():
                objective.train_loss(x, y)
            objective.carry(x)
        gradients, loss = self._averaged(found, both, loss, rows(x))
        self._move(self.weights_optimizer, self.weights, gradients[: len(self.weights)], self.options.clip_grad)
        self._move_response(gradients[len(self.weights) :])
        return loss

    def response_gradients(self, x: Any, y: Any) -> Sequence[Tensor | None]:
        """Gradients of E_ε L_T(λ+ε, w₀+Θε) (3.10) in Θ, on the share of a minibatch that trains Θ.

        Args:
            x: inputs (B, …) of the whole minibatch.
            y: targets (B, …).

        Returns:
            One gradient for each parameter in `response`, of the parameter's shape. None if the loss does not depend
            on the parameter.
        """
        kept = max(1, round(self.options.response_fraction * rows(x)))
        in_parts = self.options.sub_batches > 1
        # With fewer than four rows batch normalisation would get the same example twice and no other example.
        paired = self.options.antithetic and not in_parts and kept >= 4 and self.objective.space.differs_in_a_batch
        x, y = self._window(x, y, kept // 2 if paired else kept)
        with frozen(self.weights), self._statistics.held():
            found = self._gradients_of_parts(x, y) if in_parts else self._gradients(x, y, paired)
        return found if self.workers is None else self.workers.mean(found, self.response, kept)

    def _window(self, x: Any, y: Any, kept: int) -> tuple[Any, Any]:
        """`kept` examples that follow each other, the first one behind the last one, from a random example on.

        The first examples alone would not do: the sequences of a corpus stand at the same place in each minibatch.
        """
        count = rows(x)
        if kept == count:
            return x, y
        device = self.objective.space.lam.device
        start = torch.randint(count, (1,), generator=self.objective.generator, device=device)
        index = (torch.arange(kept, device=device) + start) % count
        return taken(x, index), taken(y, index)

    def _gradients(self, x: Any, y: Any, paired: bool) -> tuple[Tensor | None, ...]:
        """Gradients in Θ from one pass over these examples, each under its own perturbations, or under pairs ±ε."""
        # The gradient contains ∇L_T(λ, w₀)⊗ε, whose mean is zero. It has opposite signs in the two halves.
        examples, copies = rows(x), self.options.perturbations * (2 if paired else 1)
        if copies > 1:
            x, y = repeated(x, copies), repeated(y, copies)
        loss = self.objective.train_loss(x, y, self._perturbation(examples * copies, paired))
        return torch.autograd.grad(loss, self.response, allow_unused=True)

    def _gradients_of_parts(self, x: Any, y: Any) -> tuple[Tensor | None, ...]:
        """Gradients in Θ from one pass over each part of these examples, each under one perturbation."""
        # Batch normalisation needs two examples.
        parts, copies = min(self.options.sub_batches, max(1, rows(x) // 2)), self.options.perturbations
        total: list[Tensor | None] = [None] * len(self.response)
        eps: Tensor | None = None
        for _ in range(copies):
            for part, target in zip(split(x, parts), split(y, parts), strict=True):
                if eps is not None and self.options.antithetic:
                    shared, eps = -eps, None
                else:
                    shared = eps = self._perturbation(1)
                loss = self.objective.train_loss(part, target, shared.expand(rows(part), -1))
                weighted = loss * (rows(part) / (copies * rows(x)))
                found = torch.autograd.grad(weighted, self.response, allow_unused=True)
                total = [_plus(one, other) for one, other in zip(total, found, strict=True)]
        return tuple(total)

    def response_step(self, x: Any, y: Any) -> None:
        """Move Θ on one minibatch, at the present weights w₀ (3.10); the model must be in training mode."""
        self._move_response(self.response_gradients(x, y))

    def _move_response(self, gradients: Sequence[Tensor | None]) -> None:
        assert self.response_optimizer is not None
        limits = [most for most in (self.options.response_clip, self.options.clip_grad) if most is not None]
        most = min(limits, default=None)
        if self.options.per_scale:
            gradients = self._per_scale(_limited(self._per_scale(gradients), most))
            most = None
        self._move(self.response_optimizer, self.response, gradients, most)

    def _per_scale(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients, with that of U divided by σ."""
        response, scale = self.objective.response, self.objective.space.scale.detach()
        assert response is not None
        return [
            g / scale if p is response.U and g is not None else g for p, g in zip(self.response, gradients, strict=True)
        ]

    def hyper_step(self, x: Any, y: Any) -> Tensor:
        """Move λ, and σ if it is tuned, on one validation minibatch; the model must be in evaluation mode.

        One backward pass gives ∇_λ and ∇_σ of E_ε L_V(λ+ε, w₀+Θ(λ−λ₀+ε)) − τ·H[p(ε|σ)] (Algorithm 1). Then λ is put
        back into its box.

        Returns:
            The objective before the step, a detached scalar.
        """
        assert self.hyper_optimizer is not None
        space = self.objective.space
        moved = [space.lam, space.raw_scale] if self.options.tune_scale else [space.lam]
        with frozen(self.weights), frozen(self.response):
            how = self.options.hyper_pass
            eps = None if how == "unperturbed" else self.objective.sample(rows(x))
            linearized = False if how == "network" else None
            loss = self.objective.hyper_loss(x, y, eps, self.options.entropy_weight, linearized)
            found = torch.autograd.grad(loss, moved)
            perturbed = eps is not None and not (self.objective.method.linearized and linearized is None)
            if self.objective.carries and perturbed:
                # Nothing requires a gradient here. `no_grad` would choose kernels that round differently in a replay.
                self.objective.unperturbed(x)
        self.objective.carry(x)
        gradients, loss = self._averaged(found, moved, loss, rows(x))
        self._move_hyper(moved, gradients)
        return loss

    def _move_hyper(self, parameters: Sequence[torch.nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        """Move λ and perhaps σ, and put them back into their boxes."""
        assert self.hyper_optimizer is not None
        space, most = self.objective.space, self.options.hyper_clip
        before = [] if most is None else [parameter.detach().clone() for parameter in parameters]
        self._move(self.hyper_optimizer, parameters, gradients, None)
        if most is not None:
            # RMSProp's average of squares starts at zero, so that its first steps are up to ten times too long.
            with torch.no_grad():
                # Methods without a perturbation leave the second group, σ, as it is.
                groups = self.hyper_optimizer.param_groups[: len(parameters)]
                for parameter, old, group in zip(parameters, before, groups, strict=True):
                    parameter.clamp_(old - most * group["lr"], old + most * group["lr"])
        space.keep_inside(self.options.tune_scale)
        for name, moment in self.hyper_optimizer.state.get(space.lam, {}).items():
            if name in _MOMENTS and moment is not None:
                space.keep_inward(moment)

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs besides weights and optimisers. These methods need none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""

    def _averaged(
        self, gradients: Sequence[Tensor | None], parameters: Sequence[Tensor], loss: Tensor, count: int
    ) -> tuple[Sequence[Tensor | None], Tensor]:
        """Gradients and loss of the mean over the rows of all workers; `count` are the rows of this worker."""
        loss = loss.detach()
        if self.workers is None:
            return gradients, loss
        *found, mean = self.workers.mean([*gradients, loss], [*parameters, loss], count)
        assert mean is not None
        return found, mean

    def _perturbation(self, count: int, antithetic: bool = False) -> Tensor:
        with torch.no_grad():
            return self.objective.sample(count, antithetic)

    def _move(
        self,
        optimizer: Optimizer,
        parameters: Sequence[torch.nn.Parameter],
        gradients: Sequence[Tensor | None],
        most: float | None,
    ) -> None:
        """One step of an optimiser, with the norm of the gradient clipped at `most`."""
        for parameter, gradient in zip(parameters, _limited(gradients, most), strict=True):
            parameter.grad = gradient
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _limited(gradients: Sequence[Tensor | None], most: float | None) -> Sequence[Tensor | None]:
    """The gradients, scaled down if their norm is above `most`."""
    if most is None:
        return gradients
    clipped = iter(_clipped([gradient for gradient in gradients if gradient is not None], most))
    return [None if gradient is None else next(clipped) for gradient in gradients]


def _clipped(gradients: list[Tensor], most: float) -> list[Tensor]:
    # PyTorch's clip_grad_norm_ works in place. It is wrong here, because two parameters that are added to each other
    # share one gradient tensor.
    if not gradients:
        return []
    norms = torch._foreach_norm(gradients)
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return list(torch._foreach_div(gradients, (norm / most).clamp(min=1.0)))
