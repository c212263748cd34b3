"""Implicit differentiation and unrolling, two alternatives to a learned response in the same training loop.

Both differentiate L_T in λ. So λ may act through penalties only, because dropout masks and the random choices of an
augmentation have no derivative. Both use the train steps since the last hyper step, which are called the window. State
that a network carries is a constant in it: each step of the window begins at the state at which it began in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ray_deltastn.methods.differentiation import conjugate_gradient, implicit_hypergradient, neumann, unroll
from ray_deltastn.methods.frozen import frozen
from ray_deltastn.methods.objective import Objective
from ray_deltastn.methods.steps import StepOptions, Steps
from ray_deltastn.response.trees import joined, mapped, rows, tensors


class WindowSteps(Steps):
    """Plain train steps, which are stored until the next cycle.

    Args:
        objective: L_T and L_V of the task under the method.
        weights_optimizer: moves w₀.
        hyper_optimizer: moves λ.
        options: see `StepOptions`.
        window: train steps in a cycle, T_train.
    """

    def __init__(
        self,
        objective: Objective,
        weights_optimizer: Optimizer,
        hyper_optimizer: Optimizer,
        options: StepOptions | None = None,
        *,
        window: int,
    ) -> None:
        super().__init__(objective, weights_optimizer, None, hyper_optimizer, options)
        self.length = window
        #: Inputs, targets and learning rate of each train step of this cycle.
        self.window: list[tuple[Tensor, Tensor, float]] = []
        self._used = False
        self.names = {p: name for name, p in self.objective.model.named_parameters() if p.requires_grad}

    def train_step(self, x: Any, y: Any) -> Tensor:
        """Move w₀ along the gradient of L_T(λ, w₀) on one minibatch, and store the minibatch."""
        if self.complete or not self.window:
            self.window.clear()
            self._used = False
            self._begin()
        self.window.append((self.objective.kept(x), y, self.weights_optimizer.param_groups[0]["lr"]))
        return super().train_step(x, y)

    @property
    def complete(self) -> bool:
        """Whether the next train step begins a new window: λ has moved, or the window is full during warm-up."""
        return self._used or len(self.window) >= self.length

    def _begin(self) -> None:
        """Store the state before the first step of a window."""

    def hyper_step(self, x: Any, y: Any) -> Tensor:
        """Move λ on one validation minibatch; the model must be in evaluation mode.

        Returns:
            The validation objective before the step, a detached scalar.
        """
        self._used = True
        loss, gradient = self.hypergradient(x, y)
        if self.objective.carries:
            with torch.no_grad():
                self.objective.unperturbed(x)
            self.objective.carry(x)
        self._move_hyper([self.objective.space.lam], (gradient,))
        return loss.detach()

    def hypergradient(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Validation objective on one minibatch, and its gradient in λ, (h,)."""
        raise NotImplementedError

    @contextmanager
    def _training(self) -> Iterator[None]:
        self.objective.model.train()
        try:
            with self._statistics.held():
                yield
        finally:
            self.objective.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """The window, for a run that is saved inside a cycle."""
        return {"length": self.length, "window": [] if self.complete else list(self.window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a window. A window of another length is dropped, and the first hyper step uses a shorter window."""
        device = self.objective.space.lam.device

        def to(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        window = state["window"] if state["length"] == self.length else []
        self.window = [(mapped(to, x), mapped(to, y), lr) for x, y, lr in window]
        self._used = False


class ImplicitSteps(WindowSteps):
    """λ moves along the implicit-differentiation hypergradient (Eqn. 2.4), with L_T on the minibatches of the window.

    Minibatches of the same shape form one batch, for batch normalisation too.

    Args:
        objective: L_T and L_V of the task under the method.
        weights_optimizer: moves w₀.
        hyper_optimizer: moves λ.
        options: see `StepOptions`.
        window: train steps in a cycle, T_train.
        solver: `cg` or `neumann`.
        iterations: number of products with the Hessian.
        damping: ρ, which is added to the diagonal of the Hessian.
    """

    def __init__(
        self,
        objective: Objective,
        weights_optimizer: Optimizer,
        hyper_optimizer: Optimizer,
        options: StepOptions | None = None,
        *,
        window: int,
        solver: str,
        iterations: int,
        damping: float,
    ) -> None:
        super().__init__(objective, weights_optimizer, hyper_optimizer, options, window=window)
        self.solver = solver
        self.iterations = iterations
        self.damping = damping

    def hypergradient(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Validation objective on one minibatch, and its gradient in λ, (h,)."""
        objective, lam = self.objective, self.objective.space.lam
        with self._training():
            train_loss = self._window_loss(lam)
        # The weights converge to the point where ∇L_T plus the weight decay of the optimiser is zero.
        damping = self.damping + self.weights_optimizer.param_groups[0]["weight_decay"]
        valid_loss = objective.valid_objective(x, y, lam)
        if self.solver == "cg":
            solve = partial(conjugate_gradient, iterations=self.iterations)
        else:
            solve = partial(neumann, iterations=self.iterations, step=self.window[-1][2])
        return valid_loss, implicit_hypergradient(train_loss, valid_loss, self.weights, lam, solve, damping)

    def _window_loss(self, lam: Tensor) -> Tensor:
        """L_T on the window; minibatches of another length, such as a last segment, are a batch of their own."""
        batches: dict[tuple[torch.Size, ...], list[tuple[Any, Any]]] = {}
        for x, y, _ in self.window:
            batches.setdefault(tuple(t.shape[1:] for t in tensors((x, y))), []).append((x, y))
        parts = [reduce(joined, of) for of in batches.values()]
        losses = [self.objective.train_loss(x, y, lam=lam) for x, y in parts]
        if len(parts) == 1:
            return losses[0]
        sizes = [rows(x) for x, _ in parts]
        return torch.stack([loss * (size / sum(sizes)) for loss, size in zip(losses, sizes, strict=True)]).sum()


class UnrolledSteps(WindowSteps):
    """λ moves along the gradient through the train steps of the window, which are repeated with their graph.

    The optimiser must be SGD. The weights at the start of the window count as constant. Random layers without
    hyperparameters, such as constant dropout, and constant augmentations draw new random numbers in the repeated steps.
    Running statistics of normalisation layers are used as they are.
    """

    def __init__(
        self,
        objective: Objective,
        weights_optimizer: Optimizer,
        hyper_optimizer: Optimizer,
        options: StepOptions | None = None,
        *,
        window: int,
    ) -> None:
        super().__init__(objective, weights_optimizer, hyper_optimizer, options, window=window)
        #: Weights and momenta at the start of the window, by name.
        self.start: dict[str, Tensor] = {}
        self.momenta: dict[str, Tensor] = {}

    def _begin(self) -> None:
        state = self.weights_optimizer.state
        self.start = {name: p.detach().clone() for p, name in self.names.items()}
        buffers = {name: state[p].get("momentum_buffer") for p, name in self.names.items() if p in state}
        self.momenta = {name: b.detach().clone() for name, b in buffers.items() if b is not None}

    def hypergradient(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Validation objective on one minibatch, and its gradient in λ, (h,)."""
        objective, lam = self.objective, self.objective.space.lam
        group = self.weights_optimizer.param_groups[0]

        def loss_of(x: Any, y: Any) -> Callable[[Mapping[str, Tensor]], Tensor]:
            return lambda weights: objective.train_loss(x, y, lam=lam, weights=weights)

        start = {name: w.clone().requires_grad_() for name, w in self.start.items()}
        with self._training(), frozen(self.weights):
            weights = unroll(
                start,
                self.momenta,
                [loss_of(x, y) for x, y, _ in self.window],
                [lr for _, _, lr in self.window],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                clip_grad=self.options.clip_grad,
            )
        valid_loss = objective.valid_objective(x, y, lam, weights)
        (gradient,) = torch.autograd.grad(valid_loss, lam)
        return valid_loss, gradient

    def state_dict(self) -> dict[str, Any]:
        """The window, and the weights and momenta at its start."""
        if self.complete:
            return {**super().state_dict(), "start": {}, "momenta": {}}
        return {**super().state_dict(), "start": dict(self.start), "momenta": dict(self.momenta)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a window, and the weights and momenta at its start."""
        super().load_state_dict(state)
        device = self.objective.space.lam.device
        self.start = {name: w.to(device) for name, w in state["start"].items()}
        self.momenta = {name: w.to(device) for name, w in state["momenta"].items()}
