"""Every domain of Tune is searched with its own bounds and types, or refused by name."""

import math
from types import NoneType

import numpy as np
import pytest
from ray import tune

from ray_deltastn.tune.search.skopt_search import SkOptSearch
from ray_deltastn.tune.search.space import SearchSpace
from tests.tune.search.searches import EVERY, run, searcher


def test_every_domain_keeps_tunes_bounds_and_types():
    search = searcher(EVERY, n_initial_points=96)
    configs = run(search, 100, lambda config: config["uniform"])
    column = {name: [config[name] for config in configs] for name in EVERY}
    assert {type(value) for values in column.values() for value in values} <= {int, float, str, bool, NoneType}
    assert all(-1 <= value < 2 for value in column["uniform"])
    assert all(1e-5 <= value < 1e-1 for value in column["loguniform"])
    for name, low, high, q in [("quniform", -0.3, 0.6, 0.1), ("qloguniform", 0.01, 1.0, 0.01)]:
        multiples = [k * q for k in range(round(low / q), round(high / q) + 1)]
        assert all(type(v) is float and v in multiples for v in column[name])
    assert set(column["randint"]) == {-2, -1, 0, 1, 2}
    assert all(type(value) is int and 1 <= value < 100 for value in column["lograndint"])
    assert set(column["qrandint"]) == {4, 8, 12, 16, 20}
    assert set(column["qlograndint"]) == set(range(8, 65, 8))
    assert {(type(value), value) for value in column["choice"]} == {
        *[(int, 1), (float, 2.5), (str, "a"), (bool, True), (NoneType, None), (float, 0.5), (int, 7)]
    }


def test_the_ends_of_the_unit_cube_are_the_ends_of_the_domains():
    space = SearchSpace(EVERY)
    low, high = (space.decode(space.from_units([end] * len(EVERY))) for end in (0.0, 1.0))
    assert low["uniform"] == -1
    assert high["uniform"] == math.nextafter(2, 0)
    assert (low["quniform"], high["quniform"]) == (-3 * 0.1, 6 * 0.1)
    assert (low["randint"], high["randint"]) == (-2, 2)
    assert (low["lograndint"], high["lograndint"]) == (1, 99)
    assert (low["qlograndint"], high["qlograndint"]) == (8, 64)


def test_points_survive_the_way_to_the_unit_cube_and_to_configs_and_back():
    space = SearchSpace(EVERY)
    for units in np.random.RandomState(0).uniform(size=(200, len(EVERY))).tolist():
        point = space.from_units(units)
        assert tuple(space.encode(space.decode(point), "here")) == point
        assert space.from_units(space.units([point])[0].tolist()) == pytest.approx(point, rel=1e-12)


def test_nested_dictionaries_lists_and_categories_of_any_type():
    shape = {"sizes": [np.int64(3), 4], "name": None}
    config = {
        "model": {"lr": tune.loguniform(1e-3, 1e-1), "kind": "mlp", "widths": [16, tune.randint(1, 3), {"p": 0.5}]},
        "shape": tune.choice([shape, [1, 2]]),
        "epochs": 3,
    }
    given = run(searcher(config), 8, lambda config: config["model"]["lr"])
    assert all(got["epochs"] == 3 and got["model"]["kind"] == "mlp" for got in given)
    assert all(got["model"]["widths"] in ([16, 1, {"p": 0.5}], [16, 2, {"p": 0.5}]) for got in given)
    assert all(got["shape"] in (shape, [1, 2]) for got in given)
    dictionaries = [got["shape"] for got in given if isinstance(got["shape"], dict)]
    assert type(dictionaries[0]["sizes"][0]) is int
    dictionaries[0]["sizes"].append(5)
    assert shape["sizes"] == [3, 4]


def test_tunes_own_constants_are_left_to_tune():
    search = SkOptSearch(random_state=0)
    assert search.set_search_properties("loss", "min", {"task": print, "a": {"b": 1, "c": tune.uniform(0, 1)}}) is True
    config = search.suggest("t")
    assert config.keys() == {"a"}
    assert config["a"].keys() == {"c"}


@pytest.mark.parametrize(
    ("domain", "named"),
    [
        (tune.sample_from(lambda config: 1), "sample_from"),
        (tune.grid_search([1, 2]), "grid_search"),
        ({"eval": "1"}, "eval"),
        (tune.randn(0, 1), "randn"),
        (tune.qrandn(0, 1, 0.5), "qrandn"),
        (tune.choice([1, tune.uniform(0, 1)]), "conditional"),
        (tune.choice([{"p": tune.uniform(0, 1)}]), "conditional"),
    ],
)
def test_an_unsupported_domain_is_refused_by_key(domain, named):
    with pytest.raises(ValueError, match=rf"qlograndint, choice\)` must hold for 'a\.b', got .*{named}"):
        SkOptSearch().set_search_properties("loss", "min", {"a": {"b": domain}, "lr": tune.uniform(0, 1)})


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (tune.uniform(1, 0.5), "`low < high` must hold for 'lr', got low=1, high=0.5"),
        (tune.randint(3, 3), "`low < high` must hold for 'lr', got low=3, high=3"),
        (
            tune.qrandint(5, 7, 4),
            "`low <= k * q <= high for some integer k` must hold for 'lr', got low=5, high=7, q=4",
        ),
        (tune.choice([]), "`at least one category` must hold for 'lr', got []"),
    ],
)
def test_an_empty_domain_is_refused_by_key(domain, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        searcher({"lr": domain})
    assert str(caught.value) == message


def test_a_space_without_domains_is_refused():
    with pytest.raises(ValueError, match="at least one domain"):
        SkOptSearch().set_search_properties("loss", "min", {"lr": 0.1})


@pytest.mark.parametrize(
    "wrong",
    [{"lie": "best"}, {"acq_func": "MES"}, {"n_initial_points": 0}, {"random_state": -1}, {"mode": "up"}],
)
def test_an_argument_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        searcher(**wrong)
