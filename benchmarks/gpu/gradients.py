"""Correctness: gradients against a dense oracle, and whole cycles against the CPU in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ray_deltastn as rd
from benchmarks.gpu import oracle
from benchmarks.gpu.items import Findings, Item, Place, largest_difference
from benchmarks.gpu.networks import parts
from ray_deltastn.methods import RunningStatistics

CPU = torch.device("cpu")
ROWS, WORDS, WIDTH = 6, 12, 16
#: Largest error of a gradient: relative to the norm of the oracle's.
DOUBLE, SINGLE, ROUNDED = 1e-9, 1e-4, 2e-2
#: Cycles multiply rounding errors.
STEPS, DOUBLE_CYCLE, SINGLE_CYCLE = 12, 1e-7, 1e-2
#: bfloat16 has eight bits.
HALF_ANGLE, HALF_NORM = 0.02, 0.1


class _Attention(nn.Module):
    """Words, an encoder layer, and the mean over the places."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.out = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.encoder(self.words(x)).mean(1))
        return out


class _Recurrent(nn.Module):
    """Words, two recurrent layers, and the last place."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.out = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.layers(self.words(x))[0][:, -1])
        return out


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 10))


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def _batch_statistics() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16 * 9, 10),
    )


#: Networks by name.
MADE: dict[str, Callable[[], nn.Module]] = {
    "perceptron": _perceptron,
    "convolutions": _convolutions,
    "batch normalisation": _batch_statistics,
    "attention": _Attention,
    "recurrent": _Recurrent,
}
METHODS = ("delta-stn", "centered-stn")


class Problem:
    """A run of a small network without dropout, with a random Θ; the same on every device and in every type.

    Args:
        name: key of `MADE`.
        method: name of a method.
        device: the device.
        dtype: type of weights and inputs.
        options: further options of the run.
    """

    def __init__(self, name: str, method: Any, device: torch.device, dtype: torch.dtype, **options: Any) -> None:
        torch.manual_seed(0)
        model = MADE[name]().to(dtype)
        #: With batch statistics all examples share a perturbation.
        self.shared = name == "batch normalisation"
        per: Any = "batch" if self.shared else "example"
        space = rd.HyperSpace(decay=rd.Positive(0.03, scale=0.7, per=per), other=rd.Unbounded(0.3, scale=1.2, per=per))
        own = torch.Generator().manual_seed(1)
        if isinstance(model, _Attention | _Recurrent):
            x = torch.randint(0, WORDS, (2 * ROWS, 5), generator=own)
        else:
            x = torch.randn(2 * ROWS, 3, 8, 8, generator=own, dtype=torch.float64).to(dtype)
        y = torch.randint(0, 10, (2 * ROWS,), generator=own)
        task = rd.Task(
            space=space, model=model, loss=F.cross_entropy, train=(x, y), valid=(x, y), penalty=oracle.Decay()
        )
        given: dict[str, Any] = {"preset": "paper", "batch_size": ROWS, "epochs": 50, "warmup": 0, "lr": 0.05}
        self.tuner = rd.SelfTuner(task, method, device=device, **{**given, "entropy_weight": oracle.ENTROPY, **options})
        self.x, self.y = (t[:ROWS].to(device) for t in (x, y))
        assert self.tuner.response is not None
        with torch.no_grad():
            for parameter in self.tuner.response.parameters():
                noise = torch.randn(parameter.shape, generator=own, dtype=torch.float64)
                parameter.copy_(0.3 * noise)
        self.z = torch.randn(1 if self.shared else ROWS, 2, generator=own, dtype=torch.float64).to(device, dtype)
        self._own = own

    def gradients(self) -> dict[str, Tensor]:
        """Gradients in Θ, λ and σ as the steps compute them, by name."""
        tuner = self.tuner
        space, objective, response = tuner.space, tuner.objective, tuner.response
        assert response is not None
        theta = dict(response.named_parameters())
        z = self.z.expand(ROWS, -1)
        with tuner.arithmetic(), RunningStatistics(tuner.model).held():
            tuner.model.train()
            loss = objective.train_loss(self.x, self.y, (space.scale * z).detach())
            found = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
            tuner.model.eval()
            valid = objective.hyper_loss(self.x, self.y, space.scale * z, oracle.ENTROPY)
            of_lam, of_raw = torch.autograd.grad(valid, (space.lam, space.raw_scale))
        named = {n: torch.zeros_like(theta[n]) if g is None else g for n, g in zip(theta, found, strict=True)}
        # σ = softplus(raw), so dσ/d raw is a sigmoid.
        return {**named, "lambda": of_lam, "sigma": of_raw / torch.sigmoid(space.raw_scale.detach())}

    def same_draws(self) -> None:
        """Let the run draw its perturbations on the CPU in float64, so that they are the same on every device."""
        space = self.tuner.space

        def sample(rows: int, antithetic: bool = False) -> Tensor:
            drawn = torch.randn(1 if self.shared else rows, len(space), generator=self._own, dtype=torch.float64)
            return space.scale * drawn.to(space.lam).expand(rows, -1)

        self.tuner.objective.sample = sample  # type: ignore[method-assign]


def check_gradients(name: str, place: Place, findings: Findings) -> None:
    """Gradients in float64 and float32 against the oracle, in TF32 and bfloat16 against it more coarsely."""
    for method in METHODS:
        exact = Problem(name, method, CPU, torch.float64)
        expected = oracle.gradients(exact.tuner, exact.x, exact.y, exact.z)
        for dtype, limit, share in ((torch.float64, DOUBLE, 1e-6), (torch.float32, SINGLE, 1e-3)):
            found = Problem(name, method, place.device, dtype).gradients()
            kind = str(dtype).removeprefix("torch.")
            findings.at_most(f"{method} {kind}", largest_difference(found, expected, share), limit)
        rounded = Problem(name, method, place.device, torch.float32, precision="tf32").gradients()
        findings.at_most(f"{method} tf32", _whole_difference(rounded, expected), ROUNDED)
        half = _whole(Problem(name, method, place.device, torch.float32, precision="bf16").gradients())
        whole = _whole(expected)
        angle = 1.0 - float(torch.cosine_similarity(half, whole, 0))
        findings.at_most(f"{method} bf16, 1 - cosine", angle, HALF_ANGLE)
        findings.at_most(f"{method} bf16, norm", abs(float(half.norm() / whole.norm()) - 1.0), HALF_NORM)


def _whole(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.detach().to("cpu", torch.float64).flatten() for t in named.values()])


def _whole_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    one, other = _whole(found), _whole({name: expected[name] for name in found})
    return float((one - other).norm() / other.norm())


def check_cycles(name: str, place: Place, findings: Findings) -> None:
    """Weights, Θ, λ and σ after train and hyper steps with the same perturbations, against the CPU in float64."""
    for preset in ("paper", "recommended"):
        given = {"preset": preset, "train_interval": 2, "sub_batches": 1}

        def after(device: torch.device, dtype: torch.dtype, given: dict[str, Any] = given) -> dict[str, Tensor]:
            problem = Problem(name, "delta-stn", device, dtype, **given)
            problem.same_draws()
            problem.tuner.model.train()
            with problem.tuner.arithmetic():
                for _ in range(STEPS):
                    problem.tuner._train_step()
            return parts(problem.tuner)

        expected = after(CPU, torch.float64)
        findings.at_most(
            f"{preset} float64", largest_difference(after(place.device, torch.float64), expected), DOUBLE_CYCLE
        )
        findings.at_most(
            f"{preset} float32", largest_difference(after(place.device, torch.float32), expected), SINGLE_CYCLE
        )


ITEMS = [
    *(Item(f"gradients: {name}", partial(check_gradients, name), 8.0) for name in MADE),
    *(Item(f"cycles: {name}", partial(check_cycles, name), 6.0) for name in MADE),
]
