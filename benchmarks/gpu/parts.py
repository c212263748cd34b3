"""The parts, in the order of their worth, and the share of the time that each has."""

from __future__ import annotations

#: Name of a part, which is a module of this package with a function `items` → its share of the time.
SHARES = {"correctness": 0.45, "cost": 0.3, "quality": 0.15, "streams": 0.1}
#: What each part tells.
ABOUT = {
    "correctness": "numbers of the device against oracles and against the CPU",
    "cost": "images per second and memory against plain training, captured alike",
    "quality": "plain training, random search and delta-stn at equal device-seconds",
    "streams": "several small runs in one process",
}

#: Begins a line of the process of a part that is an event.
MARK = "@gpu "
