"""Acquisition functions against integrals, and their maximum against a fine grid."""

import math

import numpy as np
import pytest
from ray import tune
from scipy.integrate import quad
from scipy.stats import norm

from ray_deltastn.tune.search.acquisition import acquisition, log_ei, ranked, value
from ray_deltastn.tune.search.model import fit
from ray_deltastn.tune.search.space import SearchSpace
from tests.tune.search.searches import EVERY, PLANE, branin


@pytest.mark.parametrize("z", [-1e5, -2000.0, -999.0, -50.0, -3.0, -1.001, -0.999, 0.0, 2.0, 40.0])
def test_log_expected_improvement_is_the_logarithm_of_its_integral(z):
    # ∫ s φ(z − s) ds = φ(z) ∫ s exp(zs − s²/2) ds; with s = t / |z| the integrand has a width of about 1.
    unit = max(1.0, abs(z)) if z < 0 else 1.0
    top = 60.0 if z < 0 else z + 12
    integral = quad(lambda t: t * math.exp(z * t / unit - (t / unit) ** 2 / 2), 0, top, limit=200)[0] if z < 5 else None
    expected = norm.logpdf(z) + math.log(integral) - 2 * math.log(unit) if integral is not None else math.log(z)
    assert log_ei(np.array([z]))[0] == pytest.approx(expected, rel=1e-9)


def test_acquisitions_prefer_small_means_and_large_deviations():
    mean, std = np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 2.0])
    for name in ("EI", "LCB", "PI"):
        first, second, third = acquisition(name, mean, std, best=0.0)
        assert first > second
        assert third > second


@pytest.mark.parametrize("seed", range(4))
def test_the_first_point_is_the_maximum_on_a_fine_grid(seed):
    space, draws = SearchSpace(PLANE), np.random.RandomState(seed)
    known = [space.from_units(row) for row in draws.uniform(size=(10, 2)).tolist()]
    model = fit(space, known, [branin(space.decode(point)) for point in known], [], "model")
    ticks = np.linspace(0, 1, 201)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    first = next(ranked(space, model, "EI", np.random.RandomState(0)))
    assert value(space, model, "EI", space.units([first]))[0] > value(space, model, "EI", grid).max() - 0.01


def test_all_points_of_a_finite_space_are_ranked_by_their_acquisition():
    space = SearchSpace({"a": tune.choice(["u", "v", "w"]), "b": tune.randint(0, 4), "c": tune.choice([1])})
    known = [space.from_units([a, b, 0.5]) for a, b in ((0.1, 0.1), (0.5, 0.9), (0.9, 0.4))]
    model = fit(space, known, [1.0, 2.0, None], [], "model")
    points = list(dict.fromkeys(ranked(space, model, "EI", np.random.RandomState(0))))
    assert len(points) == 12
    values = value(space, model, "EI", space.units(points))
    assert (np.diff(values) <= 1e-9).all()


def test_ranked_points_lie_in_their_domains():
    space = SearchSpace(EVERY)
    draws = np.random.RandomState(0)
    known = [space.from_units(row) for row in draws.uniform(size=(8, len(EVERY))).tolist()]
    model = fit(space, known, draws.normal(size=8).tolist(), known[:1], "model")
    for point in list(ranked(space, model, "EI", draws))[:50]:
        assert space.holds(list(point))


def test_categories_are_equally_far_from_each_other():
    space = SearchSpace(
        {"a": tune.choice("uvw"), "b": tune.choice("xy"), "c": tune.uniform(0, 1), "d": tune.choice([0])}
    )
    points = [(a, b, 0.25, 0) for a in range(3) for b in range(2)]
    columns = space.columns(space.units(points))
    assert columns.shape == (6, 5)
    for one, p in zip(columns, points, strict=True):
        for other, q in zip(columns, points, strict=True):
            assert ((one - other) ** 2).sum() == pytest.approx((p[0] != q[0]) + (p[1] != q[1]))
