"""A network of one weight behind input dropout, whose best weight and best response are known.

| symbol   | code       | meaning                                                                                    |
|----------|------------|--------------------------------------------------------------------------------------------|
| w*(s)    | `best`     | best weight at the rate s: `TARGET`·(1 − s), because inverted dropout has E[m²] = 1/(1 − s) |
| s*       | `optimum`  | the rate that the validation data ask for: their targets are w*(s*)                         |
| κ(λ, σ)  | `kappa`    | share of the slope of the line that the response learns                                     |
| Θ        | `slope_of` | the learned slope dw/dλ                                                                     |

All inputs are 1 and the losses are squared errors, so L_T(s, w) = w²/(1 − s) − 2w·`TARGET` + constant, and
L_V(w) = (w − w*(s*))². The curvature of L_T, 2/(1 − s), depends on the rate. So the response to ε weighs large rates
more, and Θ is found by quadrature. `Pull` has a constant curvature, and Θ = −κ(λ, σ)·`HIGH`/4.
"""

import math

import torch
from torch import nn

import ray_deltastn as rd
from ray_deltastn.methods import Objective, StepOptions, Steps, get_method
from ray_deltastn.regularizers import PassValues
from ray_deltastn.response import Response

TARGET, HIGH = 1.0, 0.95


def squared_error(output, target):
    return (output - target).square().sum(1)


def best(rate):
    """w*(s)."""
    return TARGET * (1 - rate)


def rate_at(lam):
    """s(λ) on the line, in Python's own floats."""
    return HIGH * min(max((lam + 2) / 4, 0.0), 1.0)


def kappa(lam, sigma):
    """Φ((2 − λ)/σ) − Φ((−2 − λ)/σ)."""

    def phi(z):
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))

    return phi((2 - lam) / sigma) - phi((-2 - lam) / sigma)


def moment(lam, sigma, power):
    """E[ε^power/(1 − s(λ + ε))] by quadrature."""
    eps = torch.linspace(-10 * sigma, 10 * sigma, 20_001, dtype=torch.float64)
    density = (-0.5 * (eps / sigma).square()).exp()
    rates = HIGH * ((lam + eps + 2) / 4).clamp(0, 1)
    return ((density / density.sum()) * eps**power / (1 - rates)).sum().item()


def slope_by_quadrature(lam, sigma, weight):
    """The Θ that minimises E_ε[L_T(s(λ + ε), w₀ + Θε)] for dropout: −w₀·E[ε/(1 − s)] / E[ε²/(1 − s)]."""
    return -weight * moment(lam, sigma, 1) / moment(lam, sigma, 2)


class Pull:
    """2·s(λ)·w: L_T has the same curvature at each rate, and its best weight is `TARGET` − s."""

    names = ("rate",)

    def __call__(self, values, weights):
        weight = weights.model[-1].weight[0, 0]
        if weights.delta is not None:
            (slot,) = weights.response.slots
            weight = weight + (weights.response.row_change(weights.delta) * weights.response.direction(slot))[:, 0]
        return 2 * values["rate"] * weight


def make_model(dropout):
    torch.manual_seed(0)
    return nn.Sequential(rd.Dropout("rate") if dropout else nn.Identity(), nn.Linear(1, 1, bias=False))


class Held:
    """Steps of a network of one weight with λ and w₀ held; Θ and, in hyper steps, σ move.

    Args:
        lam, sigma: λ and initial σ.
        dropout: input dropout, or else the penalty `Pull`.
        off: w₀ as a multiple of the best weight.
        method: name of the method.
        entropy_weight: τ.
    """

    def __init__(self, lam, sigma, dropout=True, off=1.0, method="delta-stn", entropy_weight=0.0):
        self.space = rd.HyperSpace(rate=rd.Bounded(rate_at(lam), high=HIGH, scale=sigma)).double()
        self.dropout = dropout
        self.model = make_model(dropout).double()
        with torch.no_grad():
            self.model[-1].weight.fill_(off * best(rate_at(lam)))
        self.response = Response(self.model, 1, torch.Generator().manual_seed(1))
        with torch.no_grad():
            self.response.direction(self.response.slots[0]).fill_(1.0)
        values = PassValues(self.space, torch.Generator().manual_seed(2))
        if dropout:
            self.model[0].bind(values)
        self.objective = Objective(
            self.model,
            squared_error,
            self.space,
            values,
            get_method(method),
            self.response,
            penalty=[] if dropout else [Pull()],
        )
        self.theta = torch.optim.SGD(self.response.parameters(), lr=0.0, momentum=0.9)
        self.sigma = torch.optim.RMSprop(
            [{"params": [self.space.lam], "lr": 0.0}, {"params": [self.space.raw_scale], "lr": 0.02}]
        )
        still = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.steps = Steps(self.objective, still, self.theta, self.sigma, StepOptions(entropy_weight))

    def expected_slope(self, sigma=None):
        """Θ after training, at a σ that is the current one by default."""
        lam, sigma = self.space.lam.item(), sigma or self.space.scale.item()
        if self.dropout:
            return slope_by_quadrature(lam, sigma, self.model[-1].weight.item())
        return -kappa(lam, sigma) * HIGH / 4

    @property
    def slope(self):
        """Θ now, the change of the weight for a change of λ."""
        return (self.response.fold(torch.ones(1).double())["1.weight"] - self.model[-1].weight).item()

    def train_step(self, rate, rows):
        """Move Θ at a learning rate that is given as a share of the inverse curvature of L_T in Θ."""
        lam, sigma = self.space.lam.item(), self.space.scale.item()
        self.theta.param_groups[0]["lr"] = rate / (moment(lam, sigma, 2) if self.dropout else sigma**2)
        self.model.train()
        self.steps.train_step(torch.ones(rows, 1).double(), torch.full((rows, 1), TARGET).double())

    def train(self, steps=150, rows=8192):
        """Train Θ, at a learning rate that falls to zero so that the noise of ε falls too, and return it."""
        for step in range(steps):
            self.train_step(0.3 * (1 - step / steps) ** 2, rows)
        return self.slope

    def tune_scale(self, cycles, rows=1024):
        """Take cycles of three train steps and one hyper step, and return the mean of σ in the last quarter."""
        y = torch.full((rows, 1), best(self.space.values().item())).double()
        found = []
        for _ in range(cycles):
            for _ in range(3):
                self.train_step(0.1, rows)
            self.model.eval()
            self.steps.hyper_step(torch.ones(rows, 1).double(), y)
            found.append(self.space.scale.item())
        return sum(found[-(cycles // 4) :]) / (cycles // 4)

    def expected_scale(self):
        """The σ that minimises L_V − τ·log σ = Θ²σ² − τ·log σ + constant, where Θ is the trained one: Θ²σ² = τ/2."""
        low, high = 1e-3, 2.0
        for _ in range(50):
            middle = (low + high) / 2
            above = (self.expected_slope(middle) * middle) ** 2 > self.steps.options.entropy_weight / 2
            low, high = (low, middle) if above else (middle, high)
        return low


def make_penalised_tuner(start, optimum, method, steps=450):
    """A run without dropout, where the rate is the strength of `L2`: w*(s) = `TARGET`/(1 + s/2)."""
    x = torch.ones(4, 1)
    task = rd.Task(
        space=rd.HyperSpace(rate=rd.Bounded(start, high=HIGH)),
        model=make_model(dropout=False),
        penalty=[rd.L2("rate")],
        loss=squared_error,
        train=(x, torch.full((4, 1), TARGET)),
        valid=(x, torch.full((4, 1), TARGET / (1 + optimum / 2))),
    )
    given = {
        "epochs": steps,
        "batch_size": 4,
        "lr": 0.1,
        "momentum": 0.0,
        "warmup_steps": 60,
        "hyper_lr": 0.05,
        "hyper_decay": 1,
    }
    return rd.SelfTuner(task, method, steps_per_report=20, **given)


def make_tuner(start, optimum, rows=512, steps=600, decay=None, **options):
    """A run with dropout that starts at a rate and whose validation data ask for another.

    Args:
        start, optimum: initial rate and s*.
        rows: number of examples, all in one minibatch.
        steps: number of train steps.
        decay: a hyperparameter for the strength of an L2 penalty, or None for no penalty.
        options: options of the run.
    """
    x = torch.ones(rows, 1)
    task = rd.Task(
        space=rd.HyperSpace(rate=rd.Bounded(start, high=HIGH), **({} if decay is None else {"decay": decay})),
        penalty=[] if decay is None else [rd.L2("decay")],
        model=make_model(dropout=True),
        loss=squared_error,
        train=(x, torch.full((rows, 1), TARGET)),
        valid=(x, torch.full((rows, 1), best(optimum))),
    )
    given = {
        "epochs": steps,
        "batch_size": rows,
        "lr": 0.02,
        "warmup_steps": 60,
        "train_interval": 3,
        "hyper_lr": 0.05,
        "steps_per_report": 20,
        **options,
    }
    return rd.SelfTuner(task, **given)


def reached(tuner, reports=8):
    """Mean of the rate and of σ in the last reports, in which λ moves around its optimum."""
    last = list(tuner.fit())[-reports:]
    return tuple(sum(report[f"{what}/rate"] for report in last) / reports for what in ("hyperparameters", "scale"))
