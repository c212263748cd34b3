"""The toy problems of Appendix H.1, as tasks and in closed form.

All problems have a quadratic inner objective in the linear map v that the network computes,

    L_T(λ, v) = 1/(2n)·‖q(λ)·Xv − t‖² + ½·g(λ)·Σ_j D_j v_j²,      L_V(v) = 1/(2m)·‖X_valid v − t_valid‖²,

so that v*(λ) = A(λ)⁻¹·q(λ)·c with A(λ) = q(λ)²·C + g(λ)·diag(D), C = XᵀX/n and c = Xᵀt/n, and

    dv*/dλ = A(λ)⁻¹ [q'(λ)·c − 2·q(λ)·q'(λ)·C v* − g'(λ)·(D ⊙ v*)].

| problem                | s(λ)         | q(λ)  | g(λ)         | D            | v                          |
|------------------------|--------------|-------|--------------|--------------|----------------------------|
| `ridge` (H.1)          | e^λ          | 1     | e^λ/n        | 1            | weights of the layer       |
| `ridge`, undivided     | e^λ          | 1     | e^λ          | 1            | the same (Figure 8)        |
| `dropout` (H.2)        | 0.95·sig(λ)  | 1 − s | s·(1 − s)    | diag(XᵀX)/n  | the same                   |
| `inverted-dropout`     | 0.95·sig(λ)  | 1     | s/(1 − s)    | diag(XᵀX)/n  | the same                   |
| `jacobian` (H.4)       | e^λ          | 1     | e^λ          | 1            | product of all six layers  |

`dropout` is H.2 as printed: training multiplies X by a mask R and does not divide by the share that is kept, and H.3
evaluates the same weights on whole rows. So a large rate does not shrink v*: it tends to diag(D)⁻¹c, one regression per
feature. H.2 prints R ~ Bern(λ), and its text calls λ the dropout rate. We take s(λ) as the share that is set to zero.
`inverted-dropout` divides by 1 − s in training, as `nn.Dropout` does. Its expected objective is a ridge penalty.

| symbol         | code           | shape            |
|----------------|----------------|------------------|
| λ              | `lam`          | (…,)             |
| X, t           | `x`, `t`       | (n, d), (n,)     |
| X_valid, t_valid | `x_valid`, `t_valid` | (m, d), (m,) |
| C, c, D        | `covariance`, `correlation`, `diagonal` | (d, d), (d,), (d,) |
| v*(λ), dv*/dλ  | `best_response`, `response_jacobian` | (…, d) |
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ray_deltastn as rd
from benchmarks.common.toy_data import Data
from ray_deltastn.response import Weights

#: Data sets with fewer points use minibatches of 10 and an initial penalty of 1; the others use 100 and 50 (H.1).
SMALL = 1000
#: Range of λ in which the optimum is searched.
SEARCH = (-16.0, 16.0)
#: Largest dropout rate, as everywhere in the paper.
MOST_DROPOUT = 0.95
HIDDEN_LAYERS = 5


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean of ½(y − t)², for y and t (B, 1)."""
    return 0.5 * F.mse_loss(output, target)


class PlainDropout(rd.Dropout):
    """Dropout of Eqn. H.2: y = x ⊙ m with m ~ Bernoulli(1 − p), without a division by 1 − p; y = x in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` after dropout, of the same shape."""
        if not self.training:
            return x
        p = self.pass_values.value(self.names[0], like=x)
        return x * (self.pass_values.rand(*x.shape, like=x) >= p)


class JacobianNorm:
    """Penalty 1/(2n)·Σ_j e^(λ_j)·‖∂y/∂X_j‖² of a linear network (Eqn. H.4), with one λ, or one λ per feature.

    We read H.4 as follows: y(X) has n entries, X has n rows, and ∂y/∂X contains the n Jacobians ∂y_i/∂x_i. In a linear
    network each of them is the product v of all layers, so the penalty is ½·Σ_j e^(λ_j)·v_j². Under a displacement, v
    belongs to the network that predicts. It is the product of the layers w₀ + Θδ, or, if the method linearises (3.13),
    v₀ + dv with dv from the product rule.

    Args:
        names: the hyperparameters with the values e^λ: one for all features, or one per feature.
        layers: names of the weights, from the first layer to the last.
        linearized: whether the method predicts with the linearised network.
    """

    def __init__(self, names: tuple[str, ...], layers: tuple[str, ...], linearized: bool) -> None:
        self.names = names
        self.layers = layers
        self.linearized = linearized

    def __call__(self, values: Mapping[str, Tensor], weights: Weights) -> Tensor:
        """Penalty (B,) under a displacement, otherwise a scalar."""
        moved = [weights.parameter(layer) for layer in self.layers]
        v = moved[0]
        if self.linearized:
            v = weights.parameters[self.layers[0]]
            dv = moved[0] - v
            for layer, after in zip(self.layers[1:], moved[1:], strict=True):
                base = weights.parameters[layer]
                v, dv = base @ v, base @ dv + (after - base) @ v
            v = v + dv
        else:
            for after in moved[1:]:
                v = after @ v
        strengths = torch.stack([values[name] for name in self.names], -1).to(v.dtype)  # (B, 1 or d)
        return 0.5 * (strengths * v.squeeze(-2).square()).sum(-1)


def _rate(lam: Tensor) -> tuple[Tensor, Tensor]:
    """Dropout rate s(λ) and s'(λ), each (…,)."""
    rate = MOST_DROPOUT * torch.sigmoid(lam)
    return rate, rate * torch.sigmoid(-lam)


class Problem:
    """One toy problem on one data set, with its task and its exact solution.

    Args:
        kind: `ridge`, `dropout`, `inverted-dropout` or `jacobian`.
        data: training and validation data.
        divide: whether to divide the ridge penalty by n (H.1); False is the form of Figure 8.
        initial: initial s(λ). The default is that of H.1: a dropout rate of 0.2, or a penalty e^λ/n of 1/n below 1,000
            points and 50/n otherwise. If the form does not divide by n, e^λ itself starts at 1/n or 50/n. So all forms
            start from the same objective.

    Raises:
        ValueError: if the kind is unknown.
    """

    KINDS = ("ridge", "dropout", "inverted-dropout", "jacobian")

    def __init__(self, kind: str, data: Data, divide: bool = True, initial: float | None = None) -> None:
        if kind not in self.KINDS:
            raise ValueError(f"`problem` must be one of {', '.join(self.KINDS)}, got {kind!r}")
        self.kind = kind
        self.data = data
        self.divided = divide and kind == "ridge"
        n, self.dimension = data.x.shape
        self.batch_size = 10 if data.points < SMALL else 100
        self.covariance = data.x.T @ data.x / n  # (d, d)
        self.correlation = data.x.T @ data.t / n  # (d,)
        self.drops = kind in ("dropout", "inverted-dropout")
        self.diagonal = self.covariance.diagonal() if self.drops else torch.ones_like(self.correlation)
        self.hyperparameter: rd.Bounded | rd.Positive
        if self.drops:
            self.hyperparameter = rd.Bounded(0.2 if initial is None else initial, low=0.0, high=MOST_DROPOUT)
        else:
            penalty = 1.0 if data.points < SMALL else 50.0
            default = penalty if self.divided else penalty / n
            self.hyperparameter = rd.Positive(default if initial is None else initial)
        self._optimum: tuple[float, float] | None = None

    def task(self, seed: int, linearized: bool = False) -> rd.Task:
        """The problem as a `Task`.

        Args:
            seed: seed of the initial weights.
            linearized: whether the method predicts with the linearised network. `jacobian` penalises the Jacobian of
                the network that predicts.
        """
        data, d = self.data, self.dimension
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            if self.drops:
                layers.append((PlainDropout if self.kind == "dropout" else rd.Dropout)("hyperparameter"))
            if self.kind == "jacobian":
                layers += [nn.Linear(d, d, bias=False) for _ in range(HIDDEN_LAYERS)]
            model = nn.Sequential(*layers, nn.Linear(d, 1, bias=False))
        penalties: list[rd.L2 | JacobianNorm] = []
        if self.kind == "ridge":
            penalties.append(rd.L2("hyperparameter", divide_by=len(data.x) if self.divided else 1.0))
        elif self.kind == "jacobian":
            names = tuple(name for name, _ in model.named_parameters())
            penalties.append(JacobianNorm(("hyperparameter",), names, linearized))
        return rd.Task(
            space=rd.HyperSpace(hyperparameter=self.hyperparameter),
            model=model,
            loss=half_squared_error,
            penalty=penalties,
            train=(data.x.float(), data.t.float()[:, None]),
            valid=(data.x_valid.float(), data.t_valid.float()[:, None]),
        )

    def strength(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """g(λ) and g'(λ), each (…,)."""
        if self.drops:
            rate, slope = _rate(lam)
            if self.kind == "dropout":
                return rate * (1 - rate), slope * (1 - 2 * rate)
            return rate / (1 - rate), slope / (1 - rate).square()
        g = lam.exp() / (len(self.data.x) if self.divided else 1)
        return g, g

    def kept(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """q(λ) and q'(λ), each (…,): the factor of the mean prediction in training."""
        if self.kind == "dropout":
            rate, slope = _rate(lam)
            return 1 - rate, -slope
        return torch.ones_like(lam), torch.zeros_like(lam)

    def _system(self, lam: Tensor) -> Tensor:
        """A(λ), (…, d, d)."""
        squared = self.kept(lam)[0].square()[..., None, None]
        return squared * self.covariance + torch.diag_embed(self.strength(lam)[0][..., None] * self.diagonal)

    def best_response(self, lam: Tensor) -> Tensor:
        """v*(λ), (…, d) for λ (…,) in float64."""
        found: Tensor = torch.linalg.solve(self._system(lam), self.kept(lam)[0][..., None] * self.correlation)
        return found

    def response_jacobian(self, lam: Tensor) -> Tensor:
        """dv*/dλ, (…, d) for λ (…,)."""
        v = self.best_response(lam)
        q, dq = (factor[..., None] for factor in self.kept(lam))
        moved = dq * (self.correlation - 2 * q * (v @ self.covariance))
        moved = moved - self.strength(lam)[1][..., None] * self.diagonal * v
        found: Tensor = torch.linalg.solve(self._system(lam), moved)
        return found

    def train_loss(self, lam: Tensor, v: Tensor) -> Tensor:
        """L_T(λ, v) in expectation over dropout, (…,) for λ (…,) and v (…, d)."""
        residual = self.kept(lam)[0][..., None] * (v @ self.data.x.T) - self.data.t
        return 0.5 * residual.square().mean(-1) + 0.5 * self.strength(lam)[0] * (self.diagonal * v.square()).sum(-1)

    def valid_loss(self, v: Tensor) -> Tensor:
        """L_V(v), (…,) for v (…, d) (Eqn. H.3)."""
        return 0.5 * (v @ self.data.x_valid.T - self.data.t_valid).square().mean(-1)

    def outer(self, lam: Tensor) -> Tensor:
        """L_V(v*(λ)), (…,)."""
        return self.valid_loss(self.best_response(lam))

    def hypergradient(self, lam: Tensor) -> Tensor:
        """d/dλ L_V(v*(λ)), (…,), by implicit differentiation."""
        v = self.best_response(lam)
        residual = v @ self.data.x_valid.T - self.data.t_valid
        gradient = residual @ self.data.x_valid / len(self.data.t_valid)
        return (gradient * self.response_jacobian(lam)).sum(-1)

    @property
    def initial(self) -> float:
        """Initial λ, on the unconstrained axis."""
        space = rd.HyperSpace(hyperparameter=self.hyperparameter)
        space.use("open")  # as in `preset: paper`
        return space.lam.item()

    def optimum(self) -> tuple[float, float]:
        """The best λ in `SEARCH` and its L_V, from a fine grid and a golden-section search around its best point."""
        if self._optimum is None:
            grid = torch.linspace(*SEARCH, 3201, dtype=torch.float64)
            best = int(self.outer(grid).argmin())
            low, high = grid[max(best - 1, 0)].item(), grid[min(best + 1, len(grid) - 1)].item()
            ratio = (math.sqrt(5) - 1) / 2
            while high - low > 1e-9:
                a, b = high - ratio * (high - low), low + ratio * (high - low)
                left, right = self.outer(torch.tensor([a, b], dtype=torch.float64)).tolist()
                low, high = (low, b) if left < right else (a, high)
            found = torch.tensor([(low + high) / 2, grid[best].item()], dtype=torch.float64)
            losses = self.outer(found)
            self._optimum = found[losses.argmin()].item(), losses.min().item()
        return self._optimum

    def at_edge(self) -> bool:
        """Whether the optimum is at an end of `SEARCH`; then no regularisation, or the strongest, is best."""
        lam = self.optimum()[0]
        return min(lam - SEARCH[0], SEARCH[1] - lam) < 0.02

    def regret(self, lam: Tensor) -> Tensor:
        """L_V(v*(λ)) / min L_V − 1, (…,); 0 at the optimum up to rounding, infinite where λ is not finite."""
        finite = lam.isfinite()
        regret = self.outer(torch.where(finite, lam, 0.0).clamp(-600, 600)) / self.optimum()[1] - 1
        return torch.where(finite, regret.clamp_min(0.0), torch.inf)
