"""The training and validation objectives L_T and L_V under a displacement of the hyperparameters.

| symbol | code    | shape  | meaning                                                            |
|--------|---------|--------|--------------------------------------------------------------------|
| λ, ε   | `lam`, `eps` | (h,), (B, h) | hyperparameters and their perturbation                    |
| δ      | `delta` | (B, h) | input of the response: ε + λ − λ₀ if centred, λ + ε if not         |
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
from ray_deltastn.regularizers import Augmentation, Dropout, PassValues, Penalty, ReadRates
from ray_deltastn.response import Response, Weights, linearised_forward, named_parameters
from ray_deltastn.response.carried import divided, matched
from ray_deltastn.response.trees import arguments, called, mapped, rows
from ray_deltastn.space import HyperSpace

#: `loss(output, target)`; both may be nested.
Loss = Callable[[Any, Any], Tensor]


class Objective:
    """L_T and L_V of one task under one method.

    Args:
        model: the network.
        loss: `loss(output, target)`, which returns a mean () or one value per example (B,).
        space: the hyperparameters.
        pass_values: the values that the regularisers of the model read.
        method: the method, which decides how the network predicts under a perturbation.
        response: Θ, or None for a method without response.
        valid_loss: the same as `loss`, for validation. The default is `loss`.
        augment: augmentations of the training inputs, applied in this order.
        penalty: terms of L_T that depend on the weights and the hyperparameters.
        valid_penalty: the same for L_V, which then depends on λ directly (2.4).
        half: whether the network runs under bfloat16 autocast. Losses, penalties and parameters stay in float32, and
            outputs are converted to float32.
        channels_last: whether the network gets images in the channels-last memory format.
        carries: whether inputs are a pair (inputs, state), and the network returns a pair (output, state after the
            pass). Losses and metrics get the output only.
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
        carries: bool = False,
    ) -> None:
        self.half = half
        self.carries = carries
        #: State that the last pass has left, detached, of a linearised pass the state of f(x, w₀); None at first.
        self.left: Any = None
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
        #: Values of the hyperparameters for `fixed`, in their own domains, (h,) in float64.
        self.constant: Tensor | None = None
        #: Whether the model may read the rate of a tuned dropout layer as a number.
        self.reads_rates = any(isinstance(m, Dropout) for m in model.modules())

    @property
    def generator(self) -> torch.Generator | None:
        """The random generator of the run, on the training device; None means PyTorch's default generator."""
        return self.pass_values.generator

    def sample(self, rows: int, antithetic: bool = False) -> Tensor:
        """Perturbations ε (rows, h), differentiable in σ; see `HyperSpace.sample`."""
        return self.space.sample(rows, self.generator, antithetic)

    def current_values(self) -> Tensor:
        """Current values of the hyperparameters, (h,) in float64."""
        if self.constant is not None:
            return self.constant
        with torch.no_grad():
            return self.space.values()

    def delta(self, lam: Tensor, eps: Tensor | None) -> Tensor | None:
        """δ for λ perturbed by ε: (B, h), (1, h), or None without displacement.

        λ₀ is the current λ as a constant, so λ − λ₀ is zero and its gradient is not. This holds in every hyper step,
        also if several hyper steps follow each other and w₀ does not move between them.

        Args:
            lam: λ (h,).
            eps: ε (B, h), or None for no perturbation.
        """
        if self.response is None:
            return None
        # One row is enough if the rows are equal. It also serves layers whose output has no batch axis.
        if eps is not None and (not self.space.differs_in_a_batch or eps.stride(0) == 0):
            eps = eps[:1]
        if self.method.centered:
            displacement = (lam - lam.detach())[None] if lam.requires_grad else None
            if eps is None:
                return displacement
            return eps if displacement is None else eps + displacement
        return lam[None] if eps is None else lam + eps

    def predict(
        self,
        x: Any,
        delta: Tensor | None,
        weights: Mapping[str, Tensor] | None = None,
        linearized: bool | None = None,
    ) -> Any:
        """Output of the network under the displacement δ.

        Args:
            x: inputs (B, …); a mapping gives keyword arguments, a tuple positional ones. If the network carries state,
                the state after this pass is then in `left`.
            delta: δ (B, h) or (1, h), or None for no displacement.
            weights: weights by name that replace w₀. The response then has no effect.
            linearized: whether the network is linearised at w₀ (3.13), or used itself at w₀ + Θδ. The default is the
                method's.
        """
        linearized = self.method.linearized if linearized is None else linearized
        x = self.in_order(x)
        with self.precision(), self.rates():
            if weights is not None:
                output = functional_call(self.model, self._standing_in(weights), *arguments(x))
            elif delta is None or self.response is None:
                output = called(self.model, x)
            elif linearized:
                noted = self.pass_values.activations
                output = linearised_forward(self.model, x, self.response, delta, noted, self.carries)
            else:
                with self.response.displaced(delta):
                    output = called(self.model, x)
        if self.half:
            output = mapped(lambda t: t.float() if t.dtype == torch.bfloat16 else t, output)
        if not self.carries:
            return output
        output, left = divided(output)
        self.left = mapped(torch.Tensor.detach, left)
        return output

    def carry(self, x: Any, left: Any = None) -> None:
        """Write the state that a pass has left into the state of its inputs, in place. Nothing without a state.

        Call it after the last backward pass over these inputs.

        Args:
            x: the pair (inputs, state).
            left: the state; by default the one that the last pass has left.

        Raises:
            CarriedError: if the two states differ in structure, or in the shape or the type of a tensor.
        """
        if not self.carries:
            return
        with torch.no_grad():
            pairs = matched(x[1], self.left if left is None else left)
            # The state that is left may hold parts of the state before, at other places.
            for (before, _), after in zip(pairs, [after.clone() for _, after in pairs], strict=True):
                before.copy_(after)

    def unperturbed(self, x: Any) -> Any:
        """Output at the current λ without perturbation: of w₀, or of r(λ) for a method that is not centred."""
        return self.predict(x, self.delta(self.space.lam.detach(), None))

    def in_order(self, x: Any) -> Any:
        """`x` in the memory format for the network. The values do not change."""
        if not self.channels_last:
            return x
        return mapped(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, x)

    def precision(self) -> AbstractContextManager[Any]:
        """Context of a pass of the network: bfloat16 autocast if `half`, else no change."""
        return torch.autocast(self.space.lam.device.type, torch.bfloat16) if self.half else nullcontext()

    def rates(self) -> AbstractContextManager[Any]:
        """Context of a pass in which tuned rates act that the model reads as numbers."""
        return ReadRates() if self.reads_rates and self.model.training else nullcontext()

    def kept(self, x: Any) -> Any:
        """The inputs with a copy of their state, which `carry` would change."""
        return (x[0], mapped(torch.clone, x[1])) if self.carries else x

    def train_loss(
        self,
        x: Any,
        y: Any,
        eps: Tensor | None = None,
        *,
        lam: Tensor | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """L_T(λ+ε, w) on a minibatch, with weights w displaced by ε (Eqns. 2.5, 3.10); L_T(λ, w₀) without ε (Eqn. 3.9).

        Args:
            x: inputs (B, …) before augmentation.
            y: targets (B, …).
            eps: ε (B, h), or None for no perturbation.
            lam: λ (h,) to differentiate in. The default is the current λ, which then gets no gradient.
            weights: weights by name that replace w₀.

        Returns:
            The objective, a scalar. σ gets no gradient.

        Raises:
            ValueError: if `loss` returns neither a scalar nor one value per example.
        """
        with torch.set_grad_enabled(lam is not None):
            at = self.space.lam.detach() if lam is None else lam
            values = self.constant if self.constant is not None else self.space.values(at if eps is None else at + eps)
            named = self.space.named(values)
        delta = self.delta(at, eps)
        self.pass_values.values, self.pass_values.activations = named, []
        try:
            for augmentation in self.augment:
                x = augmentation(x, self.pass_values)
            output = self.predict(x, delta, weights)
            terms = [term(activation).mean() for term, activation in self.pass_values.activations]
        finally:
            self.pass_values.values, self.pass_values.activations = {}, None
        loss = sum(terms, _mean(self.loss(output, y), rows(x)))
        return self._penalised(loss, self.penalty, named, delta, weights)

    def valid_objective(self, x: Any, y: Any, lam: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """L_V(λ, w) on a minibatch without perturbation, differentiable in w and, if it depends on λ directly, in λ.

        Args:
            x: inputs (B, …).
            y: targets (B, …).
            lam: λ (h,).
            weights: weights by name that replace w₀.

        Returns:
            The objective, a scalar.
        """
        loss = _mean(self.valid_loss(self.predict(x, None, weights), y), rows(x))
        named = self.space.named(self.space.values(lam)) if self.valid_penalty else {}
        return self._penalised(loss, self.valid_penalty, named, None, weights)

    def hyper_loss(
        self, x: Any, y: Any, eps: Tensor | None, entropy_weight: float, linearized: bool | None = None
    ) -> Tensor:
        """E_ε[L_V(λ+ε, w)] − τ·H[p(ε|σ)] on a minibatch, differentiable in λ and σ (Eqn. 2.7).

        Args:
            x: inputs (B, …).
            y: targets (B, …).
            eps: ε (B, h), differentiable in σ, or None for ε = 0.
            entropy_weight: τ.
            linearized: see `predict`.

        Returns:
            The objective, a scalar.
        """
        lam = self.space.lam
        delta = self.delta(lam, eps)
        loss = _mean(self.valid_loss(self.predict(x, delta, linearized=linearized), y), rows(x))
        if self.valid_penalty:
            named = self.space.named(self.space.values(lam if eps is None else lam + eps))
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
        """All parameters by name, with `weights` in place of some; a tied parameter is under each of its names."""
        replaced = {id(self._parameters[name]): weight for name, weight in weights.items()}
        return {name: replaced.get(id(p), p) for name, p in self._parameters.items()}


def _mean(loss: Tensor, batch: int) -> Tensor:
    if loss.dim() == 0:
        return loss
    if loss.shape != (batch,):
        raise ValueError(f"`loss` must return a scalar or shape ({batch},), got shape {tuple(loss.shape)}")
    return loss.mean()
