"""The fixed maps s from the real line to the domain of a hyperparameter, and their inverses (Appendix F).

| map        | s(λ)                                             | box of λ              | domain            |
|------------|--------------------------------------------------|-----------------------|-------------------|
| `identity` | λ                                                | none                  | `Unbounded`       |
| `exp`      | exp(λ)                                           | log of the search range, or none | `Positive` |
| `above`    | low + log(1 + exp(λ))                            | none                  | `LowerBounded`    |
| `below`    | high − log(1 + exp(−λ))                          | none                  | `UpperBounded`    |
| `line`     | low + (high − low)·clamp((λ + 2)/4, 0, 1)        | [−2, 2]               | `Bounded`, `Integer` |
| `sigmoid`  | low + (high − low)·sigmoid(λ)                    | none                  | `Bounded`, `Integer` |

The paper has no `line`. Where the sigmoid is flat, a perturbation of λ changes nothing, so the response has nothing to
learn, and λ walks at random. The line has the same slope everywhere, and λ is put back into its box after each hyper
step. ε stays an unclamped Gaussian. Let Φ be the distribution function of N(0, 1). By Stein's lemma the response then
learns the slope

    E[s′(λ + ε)] = κ(λ, σ)·(high − low)/4,    κ(λ, σ) = Φ((2 − λ)/σ) − Φ((−2 − λ)/σ),

which is positive in the whole box: κ = ½ on a bound, and 0.95 in the middle for σ = 1. So λ can leave a bound.
Reflected or truncated perturbations have a mean that is not zero on a bound. They would bring back the wrong term of
Eqn. 3.8 while w₀ has not converged.

All maps compute in float64, because float32 cannot resolve 1 − sigmoid(15).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

MapName = Literal["line", "sigmoid"]
#: λ of the line is in [−REACH, REACH].
REACH = 2.0

_TINY = torch.finfo(torch.float64).tiny
_Elementwise = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Map:
    """A map s, elementwise, with bounds that broadcast against λ.

    Args:
        name: its name in the table above.
        forward: (λ, low, high) ↦ s(λ).
        inverse: (value, low, high) ↦ s⁻¹(value), finite on the bounds too.
        flat: whether s is flat far below zero, and far above zero, so that λ stops moving there.
        closed: whether the bounds are values of s.
        scale: initial perturbation scale σ unless the hyperparameter gives one.
    """

    name: str
    forward: _Elementwise
    inverse: _Elementwise
    flat: tuple[bool, bool] = (False, False)
    closed: bool = False
    scale: float = 1.0

    def __reduce__(self) -> tuple[Callable[[str], Map], tuple[str]]:
        # The functions of a map cannot be pickled, and a space must be picklable.
        return _named, (self.name,)


def _softplus(lam: Tensor) -> Tensor:
    return torch.logaddexp(lam, torch.zeros_like(lam))


def _softplus_inverse(value: Tensor) -> Tensor:
    # log(exp(v) - 1) overflows for large v. This form does not overflow, and it loses no digits for small v.
    value = value.clamp_min(_TINY)
    return value + torch.log(-torch.expm1(-value))


def _sigmoid(lam: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return low + (high - low) * torch.sigmoid(lam)


def _logit(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.log((value - low).clamp_min(_TINY)) - torch.log((high - value).clamp_min(_TINY))


def _line(lam: Tensor, low: Tensor, high: Tensor) -> Tensor:
    share = (lam + REACH) / (2 * REACH)
    # The gradient of `clamp` on its limits is zero in some releases of PyTorch. λ could then not leave a bound where a
    # loss is differentiated through s.
    share = torch.where((share >= 0) & (share <= 1), share, share.clamp(0.0, 1.0))
    # On the upper bound lerp gives exactly `high`. low + (high - low)·1 can be one rounding error above it.
    return torch.lerp(low, high, share)


def _line_inverse(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ((value - low) / (high - low) * (2 * REACH) - REACH).clamp(-REACH, REACH)


def _rounded(of: Map) -> Map:
    """The map, rounded to whole numbers. The inverse ignores the rounding, and the rounding passes no gradient.

    Training does not need a gradient through s here, because gradients reach λ through the response.
    """
    return replace(of, name=f"rounded {of.name}", forward=lambda lam, low, high: of.forward(lam, low, high).round())


IDENTITY = Map("identity", lambda lam, low, high: lam, lambda value, low, high: value)
EXP = Map("exp", lambda lam, low, high: torch.exp(lam), lambda value, low, high: torch.log(value.clamp_min(_TINY)))
ABOVE = Map(
    "above",
    lambda lam, low, high: low + _softplus(lam),
    lambda value, low, high: _softplus_inverse(value - low),
    flat=(True, False),
)
BELOW = Map(
    "below",
    lambda lam, low, high: high - _softplus(-lam),
    lambda value, low, high: -_softplus_inverse(high - value),
    flat=(False, True),
)
SIGMOID = Map("sigmoid", _sigmoid, _logit, flat=(True, True))
LINE = Map("line", _line, _line_inverse, closed=True, scale=0.5)
ROUNDED_SIGMOID, ROUNDED_LINE = _rounded(SIGMOID), _rounded(LINE)
#: Each map by its name.
MAPS = {s.name: s for s in (IDENTITY, EXP, ABOVE, BELOW, SIGMOID, LINE, ROUNDED_SIGMOID, ROUNDED_LINE)}


def _named(name: str) -> Map:
    return MAPS[name]
