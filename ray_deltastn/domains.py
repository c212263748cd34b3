"""The domain of one hyperparameter: its initial value, its bounds and its map s from the real line (Appendix F).

| symbol | code    | meaning                                            |
|--------|---------|----------------------------------------------------|
| λ      | `lam`   | unconstrained value, any real number               |
| s(λ)   | `value` | the hyperparameter in its own domain               |

There are two sets of maps, see `ray_deltastn.maps`. `clamped` is the default: `Bounded` and `Integer` use the clamped
line, and λ of `Positive` stays inside the logarithm of its search range. `open` is the paper's: `Bounded` and `Integer`
use the sigmoid, and `Positive` has no limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from ray_deltastn import maps
from ray_deltastn.maps import Map, MapName

DomainsName = Literal["clamped", "open"]


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter: its initial value, its domain and its perturbation.

    Args:
        initial: initial value in the hyperparameter's domain. It may be a bound only if the map reaches its bounds.
        scale: initial perturbation scale σ of the unconstrained value λ, positive. The default is 0.5 for the clamped
            line, an eighth of the range, and 1 for all other maps.
        per: `"example"` draws one perturbation per example, `"batch"` draws one for the whole minibatch.
        search: range `(low, high)` for black-box search (`HyperSpace.to_tune`). The default is the bounds.

    Raises:
        ValueError: if a rule does not hold. `HyperSpace` checks the rules, and the message names the hyperparameter.
    """

    initial: float
    scale: float | None = None
    per: Literal["example", "batch"] = "example"
    search: tuple[float, float] | None = None

    integer: ClassVar[bool] = False
    log_search: ClassVar[bool] = False

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the domain; an open side has an infinite bound."""
        return -math.inf, math.inf

    def map_in(self, domains: DomainsName) -> Map:
        """The map s in a set of maps."""
        return maps.IDENTITY

    def box_in(self, domains: DomainsName) -> tuple[float, float]:
        """Limits of λ in a set of maps; an open side has an infinite limit."""
        return -math.inf, math.inf

    def scale_in(self, domains: DomainsName) -> float:
        """Initial perturbation scale σ in a set of maps."""
        return self.map_in(domains).scale if self.scale is None else self.scale

    def about(self, domains: DomainsName) -> dict[str, Any]:
        """Kind, map, initial value and bounds, as a results folder describes a hyperparameter."""
        low, high = self.bounds
        kind = type(self).__name__
        return {"kind": kind, "map": self.map_in(domains).name, "initial": self.initial, "low": low, "high": high}

    def check(self, name: str, domains: DomainsName = "clamped") -> None:
        """Check the initial value, the bounds, the scale and the options.

        Args:
            name: name of the hyperparameter, for the message.
            domains: the set of maps.

        Raises:
            ValueError: if a rule does not hold.
        """
        low, high = self.bounds
        # A domain has one field for each finite bound and no field for an open side.
        numbers = {what: getattr(self, what) for what in ("initial", "scale", "low", "high") if hasattr(self, what)}
        if self.scale is None:
            del numbers["scale"]
        for what, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                text = ", a text," if isinstance(number, str) else ""
                raise ValueError(f"`{what}` must be a finite number, got {number!r}{text} for '{name}'")
        self._check_map(name)
        got = f"got low={low}, initial={self.initial}, high={high} for '{name}'"
        s = self.map_in(domains)
        if s.closed and not (low < high and low <= self.initial <= high):
            raise ValueError(f"`low <= initial <= high` and `low < high` must hold, {got}")
        if not s.closed and not low < self.initial < high:
            bound = next((f", whose map ({s.name}) does not reach {b}" for b in (low, high) if b == self.initial), "")
            raise ValueError(f"`low < initial < high` must hold, {got}{bound}")
        if self.scale is not None and not self.scale > 0:
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
        self._check_box(name, domains)

    def _check_map(self, name: str) -> None:
        """Check the name of the map, if the domain has a choice."""

    def _check_box(self, name: str, domains: DomainsName) -> None:
        """Check that the initial value is inside the box of λ, if the domain has a box that it may leave."""

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
                text = ", a text" if isinstance(v, str) else ""
                raise ValueError(
                    f"`low <= value <= high` must hold, got low={low}, value={v!r}{text}, high={high} for '{name}'"
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

    `search` is the range of black-box search, and by default also the range in which s(λ) stays during training. If it
    is not given, it covers three decades on each side of the initial value. With the maps `open` training has no range.
    """

    log_search: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Zero and infinity."""
        return 0.0, math.inf

    def map_in(self, domains: DomainsName) -> Map:
        """The map `exp`."""
        return maps.EXP

    def box_in(self, domains: DomainsName) -> tuple[float, float]:
        """Logarithm of the search range, or no limits in the maps `open`."""
        if domains == "open":
            return -math.inf, math.inf
        low, high = self.search_range("")
        return math.log(low), math.log(high)

    def _check_box(self, name: str, domains: DomainsName) -> None:
        if domains == "clamped" and self.search and not self.search[0] <= self.initial <= self.search[1]:
            raise ValueError(
                f"`search[0] <= initial <= search[1]` must hold, because λ stays inside the search range on the "
                f"clamped maps, got initial={self.initial}, search={self.search} for '{name}'"
            )

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

    def map_in(self, domains: DomainsName) -> Map:
        """The map `above`."""
        return maps.ABOVE


@dataclass(frozen=True)
class UpperBounded(Hyperparameter):
    """A number below `high`: s(λ) = high − softplus(−λ)."""

    high: float = 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Minus infinity and `high`."""
        return -math.inf, self.high

    def map_in(self, domains: DomainsName) -> Map:
        """The map `below`."""
        return maps.BELOW


@dataclass(frozen=True)
class Bounded(Hyperparameter):
    """A number between `low` and `high`, on the clamped line or on the paper's sigmoid.

    On the line s(λ) = low + (high − low)·clamp((λ + 2)/4, 0, 1), and training keeps λ in [−2, 2]. A bound may be the
    initial value, and a value on a bound can leave it. The sigmoid is s(λ) = low + (high − low)·sigmoid(λ). Its ends
    are flat: a rate that comes close to a bound is lost, because perturbations of λ change nothing there.

    Args:
        initial: initial value.
        scale: initial perturbation scale σ of λ.
        per: `"example"` or `"batch"`, see `Hyperparameter`.
        search: range `(low, high)` for black-box search. The default is the bounds.
        low: lower bound.
        high: upper bound.
        map: `"line"` or `"sigmoid"`. By default the run decides: `preset: paper` has the sigmoid, and `recommended` the
            line.
    """

    low: float = 0.0
    high: float = 1.0
    map: MapName | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """`low` and `high`."""
        return self.low, self.high

    def _on_line(self, domains: DomainsName) -> bool:
        return self.map == "line" or (self.map is None and domains == "clamped")

    def map_in(self, domains: DomainsName) -> Map:
        """The map that is given, else `line` in `clamped` and `sigmoid` in `open`."""
        return maps.LINE if self._on_line(domains) else maps.SIGMOID

    def box_in(self, domains: DomainsName) -> tuple[float, float]:
        """[−2, 2] for the line, no limits for the sigmoid."""
        return (-maps.REACH, maps.REACH) if self._on_line(domains) else (-math.inf, math.inf)

    def _check_map(self, name: str) -> None:
        if self.map not in (None, *get_args(MapName)):
            raise ValueError(f"`map` must be one of {', '.join(get_args(MapName))}, got {self.map!r} for '{name}'")


@dataclass(frozen=True)
class Integer(Bounded):
    """A whole number between `low` and `high`: the map of `Bounded`, rounded to the nearest whole number.

    The inverse ignores the rounding. The rounding passes no gradient. Training does not need one, because gradients
    reach λ through the response.
    """

    integer: ClassVar[bool] = True

    def map_in(self, domains: DomainsName) -> Map:
        """The map that is given, else `line` in `clamped` and `sigmoid` in `open`, rounded."""
        return maps.ROUNDED_LINE if self._on_line(domains) else maps.ROUNDED_SIGMOID

    def check(self, name: str, domains: DomainsName = "clamped") -> None:
        """Check as for every hyperparameter, and check that the bounds are whole numbers."""
        super().check(name, domains)
        for what, bound in (("low", self.low), ("high", self.high)):
            if bound != int(bound):
                raise ValueError(f"`{what}` must be a whole number, got {what}={bound} for '{name}'")

    def check_value(self, name: str, value: float | Sequence[float]) -> None:
        """Check as for every hyperparameter, and check that the values are whole numbers."""
        super().check_value(name, value)
        for v in value if isinstance(value, (list, tuple)) else (value,):
            if v != int(v):
                raise ValueError(f"`value` must be a whole number, got {v!r} for '{name}'")
