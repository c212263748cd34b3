"""Colour, line width and line style of each method, the same in all pictures."""

from __future__ import annotations

#: Centred STN has a wide line below the line of Δ-STN, so that both are visible if they coincide.
LOOKS: dict[str, tuple[str, float, str]] = {
    "stn": ("#d1495b", 1.8, "-"),
    "centered-only": ("#7b5ea7", 1.8, "-"),
    "centered-stn": ("#edae49", 5.0, "-"),
    "delta-stn": ("#00798c", 1.8, "-"),
    "delta-stn-dense": ("#00798c", 1.4, "--"),
    "ift": ("#6a994e", 1.8, "-"),
    "unrolled": ("#8d6748", 1.8, "-"),
}
