"""The methods, as the few choices in which they differ.

| method         | response input | w₀ trained on        | Θ trained on               | prediction under perturbation  |
|----------------|----------------|----------------------|----------------------------|--------------------------------|
| `fixed`        | none           | L_T(λ, w₀)           | –                          | –                              |
| `stn`          | λ+ε (2.6)      | E_ε L_T(λ+ε, r(λ+ε)) | the same pass              | f(x, r(λ+ε), λ+ε)              |
| `centered-stn` | ε (3.1)        | L_T(λ, w₀) (3.9)     | E_ε L_T(λ+ε, w₀+Θε) (3.10) | f(x, w₀+Θε, λ+ε)               |
| `delta-stn`    | ε (3.1)        | L_T(λ, w₀) (3.9)     | as (3.10), linearised      | f(x, w₀, λ+ε) + J_yw Θε (3.13) |
| `ift`          | none           | L_T(λ, w₀)           | –                          | – (implicit differentiation)   |
| `unrolled`     | none           | L_T(λ, w₀)           | –                          | – (through the last steps)     |
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal, get_args

MethodName = Literal["fixed", "unrolled", "ift", "stn", "centered-stn", "delta-stn"]
#: Where the gradient of λ may come from.
Hypergradient = Literal["none", "response", "implicit", "unrolled"]


@dataclass(frozen=True)
class Method:
    """What a method does.

    Args:
        name: its public name.
        hypergradient: where the gradient of λ comes from: a learned `response` Θ; `implicit` differentiation at the
            weights; the last train steps, `unrolled`; or `none`: the hyperparameters are constant or follow a schedule.
        centered: the response is fed the displacement from the current λ (3.1), not λ itself (2.6).
        split: w₀ is trained without perturbation (3.9) and Θ apart from it (3.10).
        linearized: the response acts through the network linearised at w₀ (3.13).
    """

    name: str
    hypergradient: Hypergradient = "response"
    centered: bool = True
    split: bool = True
    linearized: bool = True

    def __post_init__(self) -> None:
        known = get_args(Hypergradient)
        if self.hypergradient not in known:
            raise ValueError(
                f"`hypergradient` must be one of {', '.join(known)}, got {self.hypergradient!r} for '{self.name}'"
            )
        if not self.responds:
            return
        if self.linearized and not (self.centered and self.split):
            raise ValueError(
                f"a linearised method must be centred and split, got centered={self.centered}, split={self.split} "
                f"for '{self.name}'"
            )
        if self.split and not self.centered:
            raise ValueError(
                f"`split` needs `centered`: w₀ must be the current weights, got both apart for '{self.name}'"
            )

    @property
    def responds(self) -> bool:
        """Whether it learns a response Θ."""
        return self.hypergradient == "response"

    @property
    def trains_apart(self) -> bool:
        """Whether it trains a response Θ apart from w₀."""
        return self.responds and self.split

    @property
    def tunes(self) -> bool:
        """Whether it moves λ."""
        return self.hypergradient != "none"


METHODS = {
    method.name: method
    for method in (
        Method("fixed", hypergradient="none"),
        Method("unrolled", hypergradient="unrolled"),
        Method("ift", hypergradient="implicit"),
        Method("stn", centered=False, split=False, linearized=False),
        Method("centered-stn", linearized=False),
        Method("delta-stn"),
    )
}


def get_method(method: str | Method) -> Method:
    """The method of a name; a `Method` of your own passes through.

    Raises:
        ValueError: if there is no such method; the message has the nearest name.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        near = difflib.get_close_matches(str(method), METHODS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}{hint}")
    return METHODS[method]
