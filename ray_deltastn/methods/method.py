"""The methods, and the choices in which they differ.

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
#: Sources of the gradient of λ.
Hypergradient = Literal["none", "response", "implicit", "unrolled"]


@dataclass(frozen=True)
class Method:
    """The choices that define a method.

    Args:
        name: public name.
        hypergradient: source of the gradient of λ. `response`: a learned response Θ. `implicit`: implicit
            differentiation at the current weights. `unrolled`: the last train steps. `none`: the hyperparameters are
            constant or follow a schedule.
        centered: whether the input of the response is the displacement from the current λ (3.1). If not, it is λ
            itself (2.6).
        split: whether w₀ is trained without perturbation (3.9) and Θ in a separate pass (3.10).
        linearized: whether the response acts through the network linearised at w₀ (3.13).

    Raises:
        ValueError: if `hypergradient` is unknown or the choices contradict each other.
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
                f"`linearized` needs `centered` and `split`, got centered={self.centered}, split={self.split} for "
                f"'{self.name}'"
            )
        if self.split and not self.centered:
            raise ValueError(
                f"`split` needs `centered`, because w₀ must be the current weights, got split=True, centered=False for "
                f"'{self.name}'"
            )

    @property
    def responds(self) -> bool:
        """Whether the method learns a response Θ."""
        return self.hypergradient == "response"

    @property
    def trains_apart(self) -> bool:
        """Whether the method trains a response Θ in a separate pass."""
        return self.responds and self.split

    @property
    def tunes(self) -> bool:
        """Whether the method moves λ."""
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
    """The method with a name. A `Method` is returned as it is.

    Raises:
        ValueError: if no method has this name; the message suggests the nearest name.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        near = difflib.get_close_matches(str(method), METHODS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}{hint}")
    return METHODS[method]
