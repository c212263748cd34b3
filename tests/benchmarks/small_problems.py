"""Small toy problems, and short runs on them."""

import numpy as np
import pytest
import torch

from benchmarks.common import hypergradients
from benchmarks.common.toy_data import split
from benchmarks.common.toy_problems import Problem

FORMS = [("ridge", True), ("ridge", False), ("dropout", True), ("inverted-dropout", True), ("jacobian", True)]
EVERY_FORM = pytest.mark.parametrize(
    ("kind", "divide"), FORMS, ids=["ridge", "undivided", "dropout", "inverted-dropout", "jacobian"]
)


def small(seed=0, n=30, d=4):
    """A noisy linear problem with correlated features, in which an interior λ is best."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + 40, d)) @ rng.normal(size=(d, d))
    y = x @ rng.normal(size=d) * 0.5 + 2.0 * rng.normal(size=n + 40)
    return split("small", x, y, seed, rows_per_dim=n // d)


def lams(*values):
    return torch.tensor(values, dtype=torch.float64)


def ridge_run(seed=0, **changes):
    """A ridge problem, the configuration of a short run on it, and that run."""
    problem = Problem("ridge", small(seed))
    config = {
        "task": lambda config: problem.task(seed),
        "method": "delta-stn",
        "seed": seed,
        "lr": 0.1,
        "epochs": 3,
        "batch_size": 1000,
        "warmup": 1,
        "train_interval": 1,
        "device": "cpu",
        **changes,
    }
    return problem, config, hypergradients.tuner_of(config)
