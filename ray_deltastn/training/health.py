"""Warning metrics: numbers in every report that are zero if nothing is wrong."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ray_deltastn.space import HyperSpace
from ray_deltastn.training.columns import WARNINGS

#: |λ| of a bounded hyperparameter above which s is flat: s'(λ) is below 1 % of its largest value.
SATURATION = 6.0
#: σ below which the gradient of the entropy, 1/σ, dominates.
SMALL_SCALE = 1e-2
#: A hyper step larger than this many times its learning rate counts as large; RMSProp's first step is ten times.
LARGE_STEP = 5.0
#: Distance in λ that takes a bounded hyperparameter across most of its range.
CROSSING = 4.0


class RunWarning(UserWarning):
    """A run is set up in a way that probably gives a poor result."""


class Health:
    """Warning metrics of one run.

    Args:
        space: the hyperparameters.
        hyper_lr: learning rate of λ.
        hyper_steps: number of hyper steps planned.
        tunes: whether the method tunes hyperparameters.
    """

    def __init__(self, space: HyperSpace, hyper_lr: float, hyper_steps: int, tunes: bool) -> None:
        self.space = space
        self.hyper_lr = hyper_lr
        self.reach = hyper_steps * hyper_lr
        self.tunes = tunes
        bounds = [p.bounds for p in space.hyperparameters.values()]
        device = space.lam.device
        self._low = torch.tensor(
            [
                low > -float("inf") and not p.log_search
                for (low, _), p in zip(bounds, space.hyperparameters.values(), strict=True)
            ],
            device=device,
        )
        self._high = torch.tensor([high < float("inf") for _, high in bounds], device=device)
        self.reset()
        if self.short:
            warnings.warn(
                f"`hyper steps × hyper_lr >= {CROSSING:g}` should hold for λ to cross its range, got {hyper_steps} × "
                f"{hyper_lr:g} = {self.reach:.3g}: train longer, lower `warmup`, or raise `hyper_lr` or "
                "`valid_interval`",
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

    def watch(self, before: Tensor) -> None:
        """Note a hyper step that has moved λ from `before`, without waiting for the device."""
        move = (self.space.lam.detach() - before).abs().max()
        self._large += move > LARGE_STEP * self.hyper_lr

    def report(self) -> dict[str, float]:
        """Counts of saturated hyperparameters, small scales and large steps since the last report; short-run flag."""
        lam, scale = self.space.lam.detach(), self.space.scale.detach()
        flat = (self._low & (lam < -SATURATION)) | (self._high & (lam > SATURATION))
        return {
            WARNINGS("saturated"): float(flat.sum()) if self.tunes else 0.0,
            WARNINGS("small_scale"): float((scale < SMALL_SCALE).sum()) if self.tunes else 0.0,
            WARNINGS("large_steps"): float(self._large),
            WARNINGS("short_run"): float(self.short),
        }


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
