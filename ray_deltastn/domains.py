"""The domain of one hyperparameter: the fixed map s from the real line, and its inverse (Appendix F).

| symbol | code    | meaning                                            |
|--------|---------|----------------------------------------------------|
| λ      | `lam`   | unconstrained value, any real number               |
| s(λ)   | `value` | the hyperparameter in its own domain               |

Both maps compute in float64, because float32 cannot resolve 1 − s(15).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float64).tiny


def _softplus_inverse(value: Tensor) -> Tensor:
    # log(exp(v) - 1) overflows for large v. This form does not overflow, and it loses no digits for small v.
    value = value.clamp_min(_TINY)
    return value + torch.log(-torch.expm1(-value))


def _softplus(lam: Tensor) -> Tensor:
    return torch.logaddexp(lam, torch.zeros_like(lam))


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter: its initial value, its domain and its perturbation.

    Args:
        initial: initial value in the hyperparameter's domain, strictly between its bounds.
        scale: initial perturbation scale σ of the unconstrained value λ, positive.
        per: `"example"` draws one perturbation per example, `"batch"` draws one for the whole minibatch.
        search: range `(low, high)` for black-box search (`HyperSpace.to_tune`). The default is the bounds.

    Raises:
        ValueError: if a rule does not hold. `HyperSpace` checks the rules, and the message names the hyperparameter.
    """

    initial: float
    scale: float = 1.0
    per: Literal["example", "batch"] = "example"
    search: tuple[float, float] | None = None

    integer: ClassVar[bool] = False
    log_search: ClassVar[bool] = False

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the domain; an open side has an infinite bound."""
        return -math.inf, math.inf

    @staticmethod
    def forward(lam: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s(λ), elementwise, for bounds that broadcast against λ."""
        return lam

    @staticmethod
    def inverse(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s⁻¹(value), elementwise."""
        return value

    def check(self, name: str) -> None:
        """Check the initial value, the bounds, the scale and the options.

        Args:
            name: name of the hyperparameter, for the message.

        Raises:
            ValueError: if a rule does not hold.
        """
        low, high = self.bounds
        # A domain has one field for each finite bound and no field for an open side.
        bounds = {what: getattr(self, what) for what in ("low", "high") if hasattr(self, what)}
        for what, number in {"initial": self.initial, "scale": self.scale, **bounds}.items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise ValueError(f"`{what}` must be a finite number, got {number!r} for '{name}'")
        if not low < self.initial < high:
            raise ValueError(
                f"`low < initial < high` must hold, got low={low}, initial={self.initial}, high={high} for '{name}'"
            )
        if not self.scale > 0:
            raise ValueError(f"`scale > 0` must hold, got scale={self.scale} for '{name}'")
        if self.per not in ("example", "batch"):
            raise ValueError(f"`per` must be 'example' or 'batch', got {self.per!r} for '{name}'")
        if self.search is not None:
            if not isinstance(self.search, (tuple, list)) or len(self.search) != 2:
                raise ValueError(f"`search` must be a pair (low, high), got {self.search!r} for '{name}'")
            lo, hi = self.search
            if self.log_search and not lo > 0:
                raise ValueError(f"`search[0] > 0` must hold for a logarithmic range, got {self.search} for '{name}'")
            if not low <= lo < hi <= high:
                raise ValueError(
                    f"`low <= search[0] < search[1] <= high` must hold, "
                    f"got low={low}, search={self.search}, high={high} for '{name}'"
                )

    def check_value(self, name: str, value: float | Sequence[float]) -> None:
        """Check a constant value, or each value of a schedule.

        Args:
            name: name of the hyperparameter, for the message.
            value: one value, or one value per epoch.

        Raises:
            ValueError: if a value lies outside the domain. The bounds are allowed.
        """
        low, high = self.bounds
        for v in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(v, bool) or not isinstance(v, int | float) or not low <= v <= high:
                raise ValueError(
                    f"`low <= value <= high` must hold, got low={low}, value={v!r}, high={high} for '{name}'"
                )

    def search_range(self, name: str) -> tuple[float, float]:
        """Range for black-box search: `search` if given, else the bounds.

        Raises:
            ValueError: if the domain is open and has no `search` range.
        """
        if self.search is not None:
            return self.search
        low, high = self.bounds
        if math.isinf(low) or math.isinf(high):
            raise ValueError(
                f"`search=(low, high)` must be given for an open domain, got bounds ({low}, {high}) for '{name}'"
            )
        return low, high


@dataclass(frozen=True)
class Unbounded(Hyperparameter):
    """Any real number: s(λ) = λ."""


@dataclass(frozen=True)
class Positive(Hyperparameter):
    """A positive number that acts by its order of magnitude, such as weight decay: s(λ) = exp(λ).

    Black-box search covers three decades on each side of the initial value, unless `search` is given.
    """

    log_search: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Zero and infinity."""
        return 0.0, math.inf

    @staticmethod
    def forward(lam: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s(λ) = exp(λ)."""
        return torch.exp(lam)

    @staticmethod
    def inverse(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s⁻¹(value) = log(value)."""
        return torch.log(value.clamp_min(_TINY))

    def search_range(self, name: str) -> tuple[float, float]:
        """Range for black-box search: `search` if given, else three decades on each side of the initial value."""
        return self.search or (self.initial * 1e-3, self.initial * 1e3)


@dataclass(frozen=True)
class LowerBounded(Hyperparameter):
    """A number above `low`: s(λ) = low + softplus(λ)."""

    low: float = 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """`low` and infinity."""
        return self.low, math.inf

    @staticmethod
    def forward(lam: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s(λ) = low + log(1 + exp(λ))."""
        return low + _softplus(lam)

    @staticmethod
    def inverse(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s⁻¹(value) = v + log(1 − exp(−v)) with v = value − low."""
        return _softplus_inverse(value - low)


@dataclass(frozen=True)
class UpperBounded(Hyperparameter):
    """A number below `high`: s(λ) = high − softplus(−λ)."""

    high: float = 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Minus infinity and `high`."""
        return -math.inf, self.high

    @staticmethod
    def forward(lam: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s(λ) = high − log(1 + exp(−λ)), which increases in λ like the maps of all domains."""
        return high - _softplus(-lam)

    @staticmethod
    def inverse(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s⁻¹(value) = −(v + log(1 − exp(−v))) with v = high − value."""
        return -_softplus_inverse(high - value)


@dataclass(frozen=True)
class Bounded(Hyperparameter):
    """A number between `low` and `high`: s(λ) = low + (high − low)·sigmoid(λ)."""

    low: float = 0.0
    high: float = 1.0

    @property
    def bounds(self) -> tuple[float, float]:
        """`low` and `high`."""
        return self.low, self.high

    @staticmethod
    def forward(lam: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s(λ) = low + (high − low)·sigmoid(λ)."""
        return low + (high - low) * torch.sigmoid(lam)

    @staticmethod
    def inverse(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s⁻¹(value) = log((value − low) / (high − value))."""
        return torch.log((value - low).clamp_min(_TINY)) - torch.log((high - value).clamp_min(_TINY))


@dataclass(frozen=True)
class Integer(Bounded):
    """A whole number between `low` and `high`: the scaled sigmoid, rounded to the nearest whole number.

    The inverse inverts the sigmoid and ignores the rounding. The rounding passes no gradient. Training does not need
    one, because gradients reach λ through the response.
    """

    integer: ClassVar[bool] = True

    @staticmethod
    def forward(lam: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """s(λ) = round(low + (high − low)·sigmoid(λ))."""
        return Bounded.forward(lam, low, high).round()

    def check(self, name: str) -> None:
        """Check as for every hyperparameter, and check that the bounds are whole numbers."""
        super().check(name)
        for what, bound in (("low", self.low), ("high", self.high)):
            if bound != int(bound):
                raise ValueError(f"`{what}` must be a whole number, got {what}={bound} for '{name}'")

    def check_value(self, name: str, value: float | Sequence[float]) -> None:
        """Check as for every hyperparameter, and check that the values are whole numbers."""
        super().check_value(name, value)
        for v in value if isinstance(value, (list, tuple)) else (value,):
            if v != int(v):
                raise ValueError(f"`value` must be a whole number, got {v!r} for '{name}'")
