"""Response Jacobians of the toy problems: exact, best for a finite σ, and learned by a run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import ray_deltastn as rd
from benchmarks.common.toy_data import Data
from benchmarks.common.toy_problems import JacobianNorm, Problem

KINDS = ("ridge", "network")
#: Strength g of the penalty at the initial λ.
STRENGTH = 1.0


class Exact:
    """One of the two problems, with its exact solutions at the initial λ (h,); everything is in float64.

    Args:
        kind: `ridge` or `network`.
        data: training and validation data.

    Raises:
        ValueError: if the kind is unknown.
    """

    def __init__(self, kind: str, data: Data) -> None:
        if kind not in KINDS:
            raise ValueError(f"`problem` must be one of {', '.join(KINDS)}, got {kind!r}")
        self.kind, self.data, n = kind, data, len(data.x)
        base, initial = ("ridge", STRENGTH * n) if kind == "ridge" else ("jacobian", STRENGTH)
        self.problem = Problem(base, data, initial=initial)
        self.divisor = n if kind == "ridge" else 1
        d = self.problem.dimension
        self.groups = torch.eye(d).double() if kind == "network" else torch.ones(d, 1).double()  # (d, h)
        self.lam = torch.full((self.groups.shape[1],), self.problem.initial, dtype=torch.float64)

    def task(self, seed: int, sigma: float, linear: bool = True) -> rd.Task:
        """The problem as a `Task`; `seed` is the seed of the initial weights."""
        task = self.problem.task(seed)
        penalty: Any = task.penalty
        names: tuple[str, ...] = ("hyperparameter",)
        if self.kind == "network":
            names = tuple(f"feature_{j}" for j in range(len(self.lam)))
            penalty = JacobianNorm(names, tuple(name for name, _ in task.model.named_parameters()), linear)
        initial = self.problem.hyperparameter.initial
        space = rd.HyperSpace(**{name: rd.Positive(initial, scale=sigma) for name in names})
        return rd.Task(
            space=space, model=task.model, loss=task.loss, penalty=penalty, train=task.train, valid=task.valid
        )

    def strengths(self, lam: Tensor) -> Tensor:
        """Strength g (d,) of the penalty on each feature."""
        return self.groups @ lam.exp() / self.divisor

    def best_response(self, lam: Tensor) -> Tensor:
        """v*(λ), (d,)."""
        found: Tensor = torch.linalg.solve(
            self.problem.covariance + self.strengths(lam).diag(), self.problem.correlation
        )
        return found

    def response_jacobian(self, lam: Tensor) -> Tensor:
        """dv*/dλ, (d, h)."""
        g = self.strengths(lam)
        moved = (g * self.best_response(lam))[:, None] * self.groups
        found: Tensor = -torch.linalg.solve(self.problem.covariance + g.diag(), moved)
        return found

    def hypergradient(self, lam: Tensor) -> Tensor:
        """d/dλ L_V(v*(λ)), (h,)."""
        residual = self.data.x_valid @ self.best_response(lam) - self.data.t_valid
        return self.response_jacobian(lam).T @ (self.data.x_valid.T @ residual) / len(residual)

    def limit(self, lam: Tensor, sigma: float, joint: bool) -> tuple[Tensor, Tensor]:
        """v₀ (d,) and J (d, h) that minimise E_ε L_T(λ+ε, v₀ + Jε): over J with v₀ = v*, or over both if `joint`."""
        g = math.exp(sigma**2 / 2) * self.strengths(lam)
        own = [g * column for column in self.groups.T]  # h tensors (d,)
        slopes = [torch.linalg.solve(self.problem.covariance + (g + sigma**2 * m).diag(), m.diag()) for m in own]
        v = self.best_response(lam)
        if joint:
            system = self.problem.covariance + g.diag()
            for m, slope in zip(own, slopes, strict=True):
                system = system - sigma**2 * m[:, None] * slope
            v = torch.linalg.solve(system, self.problem.correlation)
        return v, -torch.stack([slope @ v for slope in slopes], -1)


def linear_map(tuner: rd.SelfTuner, delta: Tensor | None = None) -> Tensor:
    """Linear map v (d,): the product of all layers at weights displaced by δ (h,), by default at the current ones."""
    assert tuner.response is not None
    folded = list(tuner.response.fold(_origin(tuner) if delta is None else delta).values())
    v = folded[0]
    for weight in folded[1:]:
        v = weight @ v
    return v[0]


def learned_jacobian(tuner: rd.SelfTuner) -> Tensor:
    """dv̂/dλ (d, h) at the current weights, from the product rule over the layers."""
    found = torch.autograd.functional.jacobian(lambda delta: linear_map(tuner, delta), _origin(tuner))
    assert isinstance(found, Tensor)
    return found


def learned_hypergradient(tuner: rd.SelfTuner, data: Data) -> Tensor:
    """The hyper step's gradient of L_V in λ (h,), on all validation rows and at ε = 0."""
    lam = tuner.space.lam
    x, t = data.x_valid.to(lam), data.t_valid.to(lam)[:, None]
    loss = tuner.objective.hyper_loss(x, t, torch.zeros(len(x), len(lam)).to(lam), 0.0)
    return torch.autograd.grad(loss, lam)[0]


def _origin(tuner: rd.SelfTuner) -> Tensor:
    lam = tuner.space.lam.detach()
    return torch.zeros_like(lam) if tuner.method.centered else lam
