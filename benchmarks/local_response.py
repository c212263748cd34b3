"""What implicit differentiation says of a hypergradient, at the weights of a run and for a finite number of steps.

Around weights w₀, training with λ + Δ in place of λ moves the weights, to first order, along m = ∂²L_T/∂w∂λ. After N
steps of SGD with momentum on the quadratic model with the Hessian H of L_T, the validation loss has changed by Δ·d_N,

    d_N = −⟨z_N, m⟩,    v_{t+1} = μ v_t + H z_t − b,    z_{t+1} = z_t − α v_{t+1},    z_0 = v_0 = 0,    b = ∇_w L_V(w₀):

Eqn. 2.2 with the series for H⁻¹b cut off where training is, for N → ∞ the equation itself. H is symmetric, so one
series serves all hyperparameters.

Masks have no derivative in their rate: m comes from central differences in λ, with the same random numbers on both
sides, and is taken several times, with masks drawn anew, whose spread gives the standard error. H is taken on some of
the training images, with one draw of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import ray_deltastn as rd

#: Images per pass.
AT_ONCE = 500


def series(
    product: Callable[[Tensor], Tensor], b: Tensor, lr: float, momentum: float, horizons: Sequence[int]
) -> dict[int, Tensor]:
    """z_N for each horizon N.

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
    return found


class LocalModel:
    """The quadratic model around the weights of a run that trains `fixed`, whose values stand for λ.

    Args:
        plain: the run; it is in training mode, and its random numbers are used up.
        lam: λ (h,).
        images: how many training images the Hessian is of.
        seed: which they are, and the draws of the masks.
    """

    def __init__(self, plain: rd.SelfTuner, lam: Tensor, images: int = 1000, seed: int = 0) -> None:
        self.plain, self.lam, self.seed = plain, lam.detach(), seed
        self.weights = [p for p in plain.model.parameters() if p.requires_grad]
        self.x, self.y = (torch.cat(parts) for parts in zip(*plain.train.in_order(), strict=True))
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed)).to(self.x.device)
        self.x, self.y = self.x[order], self.y[order]
        self._gradients = [
            (self._gradient(x, y, seed, create_graph=True), len(x) / min(images, len(self.x)))
            for x, y in zip(self.x[:images].split(AT_ONCE), self.y[:images].split(AT_ONCE), strict=True)
        ]

    def _gradient(self, x: Tensor, y: Tensor, seed: int, create_graph: bool = False) -> Tensor:
        self.plain.setting.generator.manual_seed(seed)  # type: ignore[union-attr]
        loss = self.plain.objective.train_loss(x, y)
        return _vector(torch.autograd.grad(loss, self.weights, create_graph=create_graph, materialize_grads=True))

    def product(self, v: Tensor) -> Tensor:
        """Hv."""
        total = torch.zeros_like(v)
        for gradient, share in self._gradients:
            image = torch.autograd.grad(gradient, self.weights, v, retain_graph=True, materialize_grads=True)
            total += share * _vector(image)
        return total

    def valid_gradient(self) -> Tensor:
        """b, over the whole validation set."""
        total, seen = torch.zeros_like(_vector(self.weights)), 0
        self.plain.model.eval()
        for x, y in self.plain.valid.in_order():
            loss = self.plain.objective.valid_objective(x, y, self.lam)
            total += len(x) * _vector(torch.autograd.grad(loss, self.weights, materialize_grads=True))
            seen += len(x)
        self.plain.model.train()
        return total / seen

    def mixed(self, column: int, shift: float, seed: int) -> Tensor:
        """∂²L_T/∂w∂λ_j over the whole training set with one draw of the masks, (p,)."""
        space, objective = self.plain.space, self.plain.objective
        constant, sides = objective.constant, []
        for sign in (1, -1):
            lam = self.lam.clone()
            lam[column] += sign * shift
            objective.constant = space.values(lam)
            pieces = [
                len(x) / len(self.x) * self._gradient(x, y, self.seed + seed * len(self.x) + i)
                for i, (x, y) in enumerate(zip(self.x.split(AT_ONCE), self.y.split(AT_ONCE), strict=True))
            ]
            sides.append(torch.stack(pieces).sum(0))
        objective.constant = constant
        up, down = sides
        return (up - down) / (2 * shift)

    def hypergradients(self, lr: float, momentum: float, horizons: Sequence[int], shift: float, repeats: int) -> Tensor:
        """d_N of each hyperparameter, m taken so many times, (h, repeats, horizons)."""
        found = series(self.product, self.valid_gradient(), lr, momentum, horizons)
        z = torch.stack([found[n] for n in horizons])
        rows = [
            torch.stack([-(z @ self.mixed(column, shift, seed)) for seed in range(1, repeats + 1)])
            for column in range(len(self.lam))
        ]
        return torch.stack(rows)


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
