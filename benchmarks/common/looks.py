"""How the pictures draw a method: colour, line width and style, the same in all of them."""

from __future__ import annotations

#: Where centred STN and Δ-STN coincide, the first is drawn wide, under the second.
LOOKS: dict[str, tuple[str, float, str]] = {
    "stn": ("#d1495b", 1.8, "-"),
    "centered-only": ("#7b5ea7", 1.8, "-"),
    "centered-stn": ("#edae49", 5.0, "-"),
    "delta-stn": ("#00798c", 1.8, "-"),
    "delta-stn-dense": ("#00798c", 1.4, "--"),
    "ift": ("#6a994e", 1.8, "-"),
    "unrolled": ("#8d6748", 1.8, "-"),
}
