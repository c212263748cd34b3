"""Functions whose minimum is known, as stand-ins for trials.

| name         | keys                         | what it resembles or tests                                             |
|--------------|------------------------------|------------------------------------------------------------------------|
| `training`   | 2 logarithmic, 1 uniform     | the outer options of a run: it diverges if the effective rate is large |
| `branin`     | 2 uniform                    | three equal minima                                                     |
| `hartmann-6` | 6 uniform                    | one narrow minimum among local ones                                    |
| `mixed`      | 2 floats, a number, a choice | a choice that shifts the minimum of the other keys                     |
| `failing`    | 3 uniform                    | the trial crashes in a third of the space, beside the minimum          |
| `flat`       | 3 uniform                    | noise of two fifths of the whole range of values                       |
| `rosenbrock` | 4 uniform                    | a curved valley, with values over six orders of magnitude              |
| `corner`     | 4 uniform                    | the minimum is in a corner                                             |

Published formulas: Branin and Hartmann 6 as in Dixon and Szegő (1978), Rosenbrock (1960). The others are made up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import tune

#: The value of a trial that diverges: it reports infinity.
DIVERGED = math.inf


class CrashError(Exception):
    """Error for a trial that fails without a report."""


@dataclass(frozen=True)
class Function:
    """A function to minimise.

    Args:
        space: its Tune domains.
        true: the value of a config without noise; it may be `DIVERGED`, or raise `CrashError`.
        minimum: the smallest value.
        at: a config with the smallest value.
        noise: standard deviation of what a trial reports around the value.
    """

    space: Mapping[str, Any]
    true: Callable[[Mapping[str, Any]], float]
    minimum: float
    at: Mapping[str, Any]
    noise: float = 0.0


def training(config: Mapping[str, Any]) -> float:
    """A bowl in the logarithm of the effective rate lr / (1 − momentum), which diverges above 0.63."""
    rate: float = config["lr"] / (1 - config["momentum"])
    if rate > 0.63:
        return DIVERGED
    off = math.log10(rate / 0.3), config["momentum"] - 0.6, math.log10(config["tau"] / 0.03)
    value: float = 0.05 + 0.07 * off[0] ** 2 + 0.045 * off[1] ** 2 + 0.014 * off[2] ** 2
    return value


def branin(config: Mapping[str, Any]) -> float:
    """Branin's function."""
    x, y = config["x"], config["y"]
    bowl = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return float(bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10)


_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
_HARTMANN = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)


def hartmann(config: Mapping[str, Any]) -> float:
    """Hartmann's function of six variables."""
    x = np.array([config[f"x{i}"] for i in range(6)])
    return float(-np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-(_A * (x - _P) ** 2).sum(1)))


_KINDS = {"adam": (-3.0, 0.0), "sgd": (-1.0, 0.02), "rmsprop": (-3.5, 0.05)}


def mixed(config: Mapping[str, Any]) -> float:
    """Each choice has its own best rate; the best width is 5."""
    best, level = _KINDS[config["kind"]]
    off = math.log10(config["lr"]) - best
    value: float = 0.1 + level + 0.05 * off**2 + 0.004 * (config["width"] - 5) ** 2 + 0.3 * (config["rate"] - 0.35) ** 2
    return value


def failing(config: Mapping[str, Any]) -> float:
    """A valley along the wavy border of the region that crashes."""
    border = 2 / 3 + 0.15 * math.sin(2 * math.pi * config["y"])  # its mean is 2/3, so a third crashes
    if config["x"] > border:
        raise CrashError
    value: float = 4 * (config["x"] - border + 0.06) ** 2 + (config["y"] - 0.3) ** 2 + 0.5 * (config["z"] - 0.7) ** 2
    return value


_FLAT = (0.3, 0.6, 0.45)


def flat(config: Mapping[str, Any]) -> float:
    """A dent of 0.05 in a plane."""
    return 1 - 0.05 * math.exp(-3 * sum((config[key] - best) ** 2 for key, best in zip("xyz", _FLAT, strict=True)))


def rosenbrock(config: Mapping[str, Any]) -> float:
    """Rosenbrock's function of four variables."""
    x = [config[f"x{i}"] for i in range(4)]
    return float(sum(100 * (b - a**2) ** 2 + (1 - a) ** 2 for a, b in itertools.pairwise(x)))


def corner(config: Mapping[str, Any]) -> float:
    """A slope whose lowest point is where all keys are zero."""
    return float(sum(math.sqrt(config[f"x{i}"] + 0.01) * (4 - i) / 10 for i in range(4)) - 0.1)


_SIX = tuple(f"x{i}" for i in range(6))
FUNCTIONS: dict[str, Function] = {
    "training": Function(
        {"lr": tune.loguniform(0.01, 0.3), "momentum": tune.uniform(0.0, 0.9), "tau": tune.loguniform(1e-3, 1.0)},
        training,
        0.05,
        {"lr": 0.3 * (1 - 0.6), "momentum": 0.6, "tau": 0.03},
        noise=0.003,
    ),
    "branin": Function(
        {"x": tune.uniform(-5.0, 10.0), "y": tune.uniform(0.0, 15.0)},
        branin,
        0.39788735772973816,
        {"x": math.pi, "y": 2.275},
    ),
    "hartmann-6": Function(
        {key: tune.uniform(0.0, 1.0) for key in _SIX}, hartmann, -3.32237, dict(zip(_SIX, _HARTMANN, strict=True))
    ),
    "mixed": Function(
        {
            "lr": tune.loguniform(1e-5, 1.0),
            "rate": tune.uniform(0.0, 0.9),
            "width": tune.randint(1, 11),
            "kind": tune.choice(list(_KINDS)),
        },
        mixed,
        0.1,
        {"lr": 1e-3, "rate": 0.35, "width": 5, "kind": "adam"},
        noise=0.003,
    ),
    "failing": Function(
        {key: tune.uniform(0.0, 1.0) for key in "xyz"},
        failing,
        0.0,
        {"x": 2 / 3 + 0.15 * math.sin(0.6 * math.pi) - 0.06, "y": 0.3, "z": 0.7},
    ),
    "flat": Function(
        {key: tune.uniform(0.0, 1.0) for key in "xyz"}, flat, 0.95, dict(zip("xyz", _FLAT, strict=True)), noise=0.02
    ),
    "rosenbrock": Function(
        {f"x{i}": tune.uniform(-5.0, 10.0) for i in range(4)}, rosenbrock, 0.0, {f"x{i}": 1.0 for i in range(4)}
    ),
    "corner": Function(
        {f"x{i}": tune.uniform(0.0, 1.0) for i in range(4)}, corner, 0.0, {f"x{i}": 0.0 for i in range(4)}
    ),
}
