"""Warning metrics: numbers in every report that are zero if nothing is wrong."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from ray_deltastn.maps import REACH
from ray_deltastn.methods import Objective
from ray_deltastn.response.trees import rows, taken, tensors
from ray_deltastn.space import HyperSpace
from ray_deltastn.training.columns import AT_BOUND, SIGNALS, WARNINGS
from ray_deltastn.training.streams import Stream
from ray_deltastn.training.warned import RunWarning

#: |λ| of a bounded hyperparameter above which s is flat: s'(λ) is below 1 % of its largest value.
SATURATION = 6.0
#: σ below which the gradient of the entropy, 1/σ, dominates.
SMALL_SCALE = 1e-2
#: A hyper step larger than this many times its learning rate counts as large; RMSProp's first step is ten times.
LARGE_STEP = 5.0
#: Distance in λ that takes a bounded hyperparameter across its range, or across most of it on the sigmoid.
CROSSING = 2 * REACH
#: Largest number of examples for `response_size`.
LOOKED_AT = 128
#: `response_size` above which the learned response is probably wrong.
LARGE_RESPONSE = 1.0


class Health:
    """Warning metrics of one run.

    Args:
        space: the hyperparameters.
        reach: largest distance that λ can move in the run: the sum of its learning rates over the hyper steps.
        tunes: whether the method tunes hyperparameters.
    """

    def __init__(self, space: HyperSpace, reach: float, tunes: bool) -> None:
        self.space = space
        self.reach = reach
        self.tunes = tunes
        flat = [p.map_in(space.domains).flat for p in space.hyperparameters.values()]
        self._low, self._high = torch.tensor(flat, device=space.lam.device).T
        self._has_warned = False
        self.reset()
        if tunes and reach == 0:
            warnings.warn(
                "λ will never move, because the warm-up takes the whole run: lower `warmup`, or raise `epochs`",
                RunWarning,
                stacklevel=3,
            )
        elif self.short:
            warnings.warn(
                f"`hyper steps × mean hyper_lr >= {CROSSING:g}` should hold for λ to cross its range, got {reach:.3g}: "
                "train longer, lower `warmup`, or raise `hyper_lr`, `hyper_decay` or `valid_interval`",
                RunWarning,
                stacklevel=3,
            )

    @property
    def short(self) -> bool:
        """Whether the planned hyper steps cannot move λ across its range."""
        return self.tunes and self.reach < CROSSING

    def reset(self) -> None:
        """Start a new report."""
        self._large: Tensor = torch.zeros((), device=self.space.lam.device)
        self._moves = HyperMoves(self.space)

    def watch(self, before: Tensor, hyper_lr: float) -> None:
        """Note a hyper step that has moved λ from `before` at this learning rate, without waiting for the device."""
        move = self.space.lam.detach() - before
        self._large += move.abs().max() > LARGE_STEP * hyper_lr
        self._moves.add(move / hyper_lr)

    def report(self, response_size: float) -> dict[str, float]:
        """Counts of saturated hyperparameters, small scales and large steps since the last report, and two flags.

        Args:
            response_size: see `ResponseSize`. If it is large, a warning is given once.
        """
        large = not response_size <= LARGE_RESPONSE
        if large and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"`response_size <= {LARGE_RESPONSE:g}` should hold, got {response_size:.3g}: the learned response is "
                "probably wrong; lower `response_lr`, or raise `response_fraction` or `perturbations`",
                RunWarning,
                stacklevel=2,
            )
        lam, scale = self.space.lam.detach(), self.space.scale.detach()
        flat = (self._low & (lam < -SATURATION)) | (self._high & (lam > SATURATION))
        return {
            WARNINGS("saturated"): float(flat.sum()) if self.tunes else 0.0,
            WARNINGS("small_scale"): float((scale < SMALL_SCALE).sum()) if self.tunes else 0.0,
            WARNINGS("large_steps"): float(self._large),
            WARNINGS("large_response"): float(large),
            WARNINGS("short_run"): float(self.short),
            **self._moves.report(),
        }


class HyperMoves:
    """The moves of λ in the hyper steps of a report: how consistent they are, and how often λ is on a limit.

    The signal of a hyperparameter is |mean| / RMS of its moves, in learning rates: 1 if all moves are equal, near 0 if
    they are noise. RMSProp divides the hypergradient by its running root mean square, so that this tells the
    signal-to-noise ratio r of the hypergradient: it is about r/√(1 + r²).

    Args:
        space: the hyperparameters.
    """

    def __init__(self, space: HyperSpace) -> None:
        self.space = space
        self._count = 0
        self._sums: Tensor = torch.zeros(3, len(space), device=space.lam.device)  # moves, squares, on a limit

    def add(self, move: Tensor) -> None:
        """Count a move (h,) in learning rates, without waiting for the device."""
        lam, (low, high) = self.space.lam.detach(), self.space.box
        self._count += 1
        self._sums += torch.stack([move, move.square(), ((lam <= low) | (lam >= high)).to(move)])

    def report(self) -> dict[str, float]:
        """|mean| / RMS of the moves, and the share of the steps with λ on a limit; zero without a step."""
        mean, square, bound = (self._sums / max(1, self._count)).double().tolist()
        signal = [min(1.0, abs(m) / math.sqrt(s)) if s > 0 else 0.0 for m, s in zip(mean, square, strict=True)]
        names = self.space.names
        return {
            **SIGNALS.named(dict(zip(names, signal, strict=True))),
            **AT_BOUND.named(dict(zip(names, bound, strict=True))),
        }


class ResponseSize:
    """RMS(J_yw Θε) / RMS(y) on the first validation examples, the size of what the response adds to the outputs.

    ε = σ ⊙ z with the same z ~ N(0, I) each time. For a method that does not linearise, the numerator is the root mean
    square of f(x, w₀ + Θε) − f(x, w₀), for `stn` that of f(x, r(λ + ε)) − f(x, r(λ)). A good response is small, because
    a perturbation of λ by σ changes the best weights a little. If Θ blows up, the ratio is large, and the losses of w₀
    show nothing.

    Args:
        objective: the objective, with its response.
        valid: validation data, of which the first examples are used, at most `LOOKED_AT`.
        seed: seed of z.
    """

    def __init__(self, objective: Objective, valid: Stream, seed: int) -> None:
        self.objective = objective
        self._valid = valid
        self._seed = seed

    def __call__(self) -> float:
        """The ratio now; zero for a method without response, and infinite if it is not a number."""
        objective, space = self.objective, self.objective.space
        if objective.response is None:
            return 0.0
        was_training = objective.model.training
        objective.model.eval()
        with torch.no_grad():
            x = taken(next(iter(self._valid.in_order()))[0], slice(LOOKED_AT))
            z = torch.randn(rows(x), len(space), generator=torch.Generator().manual_seed(self._seed))
            lam, eps = space.lam.detach(), space.scale * z.to(space.lam.device, space.lam.dtype)
            output = _real(objective.predict(x, objective.delta(lam, None)))
            change = _real(objective.predict(x, objective.delta(lam, eps))) - output
            finite = output.isfinite()  # a masked output is infinite for good
            output, change = output.where(finite, 0.0), change.where(finite, 0.0)
            changed, size = change.square().mean().sqrt().item(), output.square().mean().sqrt().item()
        objective.model.train(was_training)
        if changed == 0.0:  # also if all outputs are zero
            return 0.0
        ratio = changed / size if size else math.inf
        return math.inf if math.isnan(ratio) else ratio


def _real(output: Any) -> Tensor:
    """All real numbers of an output, in one vector."""
    return torch.cat([t.flatten() for t in tensors(output) if t.is_floating_point()])


def divergence(space: HyperSpace, train_loss: float, valid_loss: float, steps: int) -> str:
    """Why a run counts as diverged, with the name of every number that is not finite; empty if all are finite.

    Args:
        space: λ (h,) and σ (h,).
        train_loss: mean of L_T since the last report.
        valid_loss: L_V.
        steps: train steps taken.
    """
    bad = [
        f"{symbol} of '{name}'={value:g}"
        for symbol, values in (("λ", space.lam.tolist()), ("σ", space.scale.tolist()))
        for name, value in zip(space.names, values, strict=True)
        if not math.isfinite(value)
    ]
    if not bad and math.isfinite(train_loss) and math.isfinite(valid_loss):
        return ""
    return "; ".join([f"diverged: train_loss={train_loss:g}, valid_loss={valid_loss:g} at step {steps}", *bad])
