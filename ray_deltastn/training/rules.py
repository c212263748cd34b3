"""Rules that a number must keep, in the words of the error that says so."""

from __future__ import annotations

import math
from typing import Any


def require_whole(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless a value is a whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name} >= {least}` must hold for a whole number, got {name}={value!r}")


def require_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Raise ValueError unless a value is a finite number within its bounds."""
    rules = [(above, ">"), (least, ">="), (below, "<"), (most, "<=")]
    text = " and ".join(f"{name} {sign} {bound:g}" for bound, sign in rules if bound is not None)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    good = good and (above is None or value > above) and (least is None or value >= least)
    if not (good and (below is None or value < below) and (most is None or value <= most)):
        raise ValueError(f"`{text}` must hold, got {name}={value!r}")
