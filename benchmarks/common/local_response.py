"""Hypergradient by implicit differentiation, at the weights of a run and for a finite number of steps.

Around weights w₀, training with λ + Δ instead of λ moves the weights, to first order, along m = ∂²L_T/∂w∂λ. After N
steps of SGD with momentum on the quadratic model with the Hessian H of L_T, the validation loss changes by Δ·d_N,

    d_N = −⟨z_N, m⟩,    v_{t+1} = μ v_t + H z_t − b,    z_{t+1} = z_t − α v_{t+1},    z_0 = v_0 = 0,    b = ∇_w L_V(w₀).

This is the response gradient of Eqn. 2.4, with the inverse of Eqn. 2.3 as a series for H⁻¹b that is truncated after N
steps. At a minimum, and with a stable step size, it converges to Eqn. 2.4 for N → ∞. Elsewhere H has negative
eigenvalues. Along them z_N grows in the same way as the distance between two trainings. H is symmetric, so one series
is enough for all hyperparameters.

A mask has no derivative with respect to its rate. So m is a central difference in λ, with the same random numbers on
both sides. H and m are computed on a part of the training images. Another seed draws other images and masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import ray_deltastn as rd
from ray_deltastn.methods.frozen import RunningStatistics
from ray_deltastn.training import random_state

#: Largest number of images in one pass.
AT_ONCE = 500


def series(
    product: Callable[[Tensor], Tensor], b: Tensor, lr: float, momentum: float, horizons: Sequence[int]
) -> Tensor:
    """z_N for each horizon N, (horizons, p).

    Args:
        product: v (p,) ↦ Hv (p,).
        b: right-hand side (p,).
        lr: α.
        momentum: μ.
        horizons: numbers of steps.
    """
    z, v, found = torch.zeros_like(b), torch.zeros_like(b), {}
    for step in range(1, max(horizons) + 1):
        v = momentum * v + product(z) - b
        z = z - lr * v
        if step in horizons:
            found[step] = z
    return torch.stack([found[n] for n in horizons])


class LocalModel:
    """Quadratic model around the weights of a run of `fixed`, whose hyperparameter values correspond to λ.

    Args:
        plain: the run; it must use SGD with `weight_decay` 0 and no validation penalty.
        lam: λ (h,).
        images: number of training images for H and m.
    """

    def __init__(self, plain: rd.SelfTuner, lam: Tensor, images: int = AT_ONCE) -> None:
        self.plain, self.lam = plain, lam.detach()
        self.weights = [p for p in plain.model.parameters() if p.requires_grad]
        self.x, self.y = (torch.cat(parts) for parts in zip(*plain.train.in_order(), strict=True))
        self.images = min(images, len(self.x))
        self._statistics = RunningStatistics(plain.model)

    def gradients(self, seed: int, create_graph: bool = False) -> list[Tensor]:
        """Terms of ∇_w L_T, each (p,), for one draw of images and masks; their sum is the gradient."""
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))[: self.images]
        pieces = order.to(self.x.device).chunk(math.ceil(self.images / AT_ONCE))
        generator = self.plain.generator
        assert generator is not None
        generator.manual_seed(seed)
        self.plain.model.train()
        found = []
        with random_state.isolated(seed, self.x.device), self._statistics.held():
            for rows in pieces:
                loss = len(rows) / self.images * self.plain.objective.train_loss(self.x[rows], self.y[rows])
                parts = torch.autograd.grad(loss, self.weights, create_graph=create_graph, materialize_grads=True)
                found.append(_vector(parts))
        return found

    def product(self, seed: int) -> Callable[[Tensor], Tensor]:
        """The product v ↦ Hv, for one draw of images and masks."""
        gradients = self.gradients(seed, create_graph=True)

        def multiply(v: Tensor) -> Tensor:
            images = [
                _vector(torch.autograd.grad(g, self.weights, v, retain_graph=True, materialize_grads=True))
                for g in gradients
            ]
            return torch.stack(images).sum(0)

        return multiply

    def mixed(self, column: int, shift: float, seed: int) -> Tensor:
        """∂²L_T/∂w∂λ_j (p,) as a central difference over λ_j ± shift, for one draw of images and masks."""
        objective = self.plain.objective
        constant, sides = objective.constant, []
        for sign in (1, -1):
            lam = self.lam.clone()
            lam[column] += sign * shift
            objective.constant = self.plain.space.values(lam)
            sides.append(torch.stack(self.gradients(seed)).sum(0))
        objective.constant = constant
        up, down = sides
        return (up - down) / (2 * shift)

    def valid_gradient(self) -> Tensor:
        """The gradient b (p,) on the whole validation set."""
        total, seen = torch.zeros_like(_vector(self.weights)), 0
        self.plain.model.eval()
        for x, y in self.plain.valid.in_order():
            loss = self.plain.objective.valid_objective(x, y, self.lam)
            total += len(x) * _vector(torch.autograd.grad(loss, self.weights, materialize_grads=True))
            seen += len(x)
        return total / seen

    def hypergradients(self, lr: float, momentum: float, horizons: Sequence[int], shift: float, seed: int) -> Tensor:
        """d_N of each hyperparameter for one draw of images and masks, (h, horizons)."""
        z = series(self.product(seed), self.valid_gradient(), lr, momentum, horizons)
        return torch.stack([-(z @ self.mixed(column, shift, seed)) for column in range(len(self.lam))])


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
