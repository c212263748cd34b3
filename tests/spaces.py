"""Domains and spaces for the tests of both."""

import pytest
import torch

from ray_deltastn.domains import Bounded, Integer, LowerBounded, Positive, Unbounded, UpperBounded
from ray_deltastn.space import HyperSpace

DOMAINS = {
    "unbounded": Unbounded(0.5),
    "positive": Positive(1e-4),
    "lower": LowerBounded(1.0, low=-2.0),
    "upper": UpperBounded(1.0, high=3.0),
    "bounded": Bounded(0.05, low=0.0, high=0.95),
    "bounded-shifted": Bounded(0.0, low=-5.0, high=20.0),
    "bounded-inexact": Bounded(0.1, low=0.03, high=0.29),  # 0.03 + (0.29 − 0.03) is above 0.29 in float64
    "integer": Integer(4, low=0, high=24),
}
CONTINUOUS = [name for name, domain in DOMAINS.items() if not domain.integer]
BOUNDED = [name for name, domain in DOMAINS.items() if isinstance(domain, Bounded)]
SIGMOID_2 = torch.sigmoid(torch.tensor(2.0, dtype=torch.float64)).item()
ALL = pytest.mark.parametrize("name", DOMAINS)
SETS = pytest.mark.parametrize("domains", ["clamped", "open"])


def one(name, domains="clamped"):
    return using(domains, p=DOMAINS[name])


def using(domains, **hyperparameters):
    space = HyperSpace(**hyperparameters)
    space.use(domains)
    return space


def on_line(domain, domains):
    return isinstance(domain, Bounded) and (domain.map == "line" or (domain.map is None and domains == "clamped"))


def reach(name, domains, most):
    """Largest |λ| at which s is not constant, at most `most`."""
    return min(most, 2.0) if on_line(DOMAINS[name], domains) else most


def mixed(domains="clamped"):
    """Hyperparameters whose order is not the order of kinds inside the space; two have the same kind."""
    return using(
        domains,
        u=Unbounded(-0.3),
        b=Bounded(0.3, scale=0.5, low=0.0, high=0.95),
        i=Integer(2, low=0, high=4),
        p=Positive(0.01, scale=2.0),
        c=Bounded(7.0, low=5.0, high=10.0, per="batch"),
        low=LowerBounded(1.5, low=1.0),
        up=UpperBounded(-1.0, high=0.0, per="batch"),
    )
