"""A search of a small space, for the tests of `SkOptSearch`."""

import math

import numpy as np
from ray import tune

from ray_deltastn.tune.search.skopt_search import SkOptSearch

PLANE = {"x": tune.uniform(-5, 10), "y": tune.uniform(0, 15)}


EVERY = {
    "uniform": tune.uniform(-1, 2),
    "loguniform": tune.loguniform(1e-5, 1e-1),
    "quniform": tune.quniform(-0.3, 0.6, 0.1),
    "qloguniform": tune.qloguniform(0.01, 1.0, 0.01),
    "randint": tune.randint(-2, 3),
    "lograndint": tune.lograndint(1, 100),
    "qrandint": tune.qrandint(4, 20, 4),
    "qlograndint": tune.qlograndint(8, 64, 8),
    "choice": tune.choice([1, 2.5, "a", True, None, np.float32(0.5), np.int64(7)]),
}


def branin(config):
    x, y = config["x"], config["y"]
    bowl = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def searcher(space=None, mode="min", **arguments):
    return SkOptSearch(PLANE if space is None else space, "loss", mode, **{"random_state": 0, **arguments})


def finish(search, trial_id, loss):
    search.on_trial_complete(trial_id, result={"loss": loss})


def run(search, count, objective=branin, start=0):
    """`count` trials one after another; their configs."""
    configs = []
    for index in range(start, start + count):
        configs.append(search.suggest(f"t{index}"))
        finish(search, f"t{index}", objective(configs[-1]))
    return configs
