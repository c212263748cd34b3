"""Points known before a search begins."""

import math

import numpy as np
import pytest
from ray import tune

from ray_deltastn.tune.search.skopt_search import SkOptSearch
from tests.tune.search.searches import branin, run, searcher


def test_points_to_evaluate_come_first_and_are_completed():
    search = searcher(points_to_evaluate=[{"x": 1.0, "y": 2.0}, {"y": 3.0}])
    first, second, third = run(search, 3)
    assert first == {"x": 1.0, "y": 2.0}
    assert second["y"] == 3.0
    assert -5 <= second["x"] < 10
    assert third["y"] not in (2.0, 3.0)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"x": 11.0}, r"points_to_evaluate\[0\]: `-5\.0 <= value <= 10\.0` must hold for 'x', got 11\.0"),
        ({"z": 1.0}, r"points_to_evaluate\[0\]: `key in \['x', 'y'\]` must hold, got 'z'"),
        ({"x": "1"}, "for 'x', got '1'"),
    ],
)
def test_points_to_evaluate_are_checked_by_name(point, message):
    with pytest.raises(ValueError, match=message):
        searcher(points_to_evaluate=[point])


def test_the_config_of_an_earlier_trial_is_accepted():
    space = {
        "task": "digits-mlp",
        "options": {"width": 64, "depth": tune.randint(1, 4)},
        "layers": [tune.randint(8, 64), 16],
        "x": tune.uniform(0, 1),
        "schedule": {"kind": "cosine"},
        "build": branin,
        "weights": np.ones(2),
    }
    earlier = searcher(space, random_state=3).suggest("a")
    added = {**earlier, "warm_start": {"values": {}, "scale": {}}, "__trial_index__": 2}
    for config in (earlier, added):
        given, late = searcher(space, points_to_evaluate=[config]), SkOptSearch(points_to_evaluate=[config])
        late.set_search_properties("loss", "min", space)
        assert given.suggest("b")["x"] == late.suggest("b")["x"] == earlier["x"]
        assert given.suggest("b")["options"] == earlier["options"]


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"epochs": 30}, r"points_to_evaluate\[0\]: `value = 20` must hold for the constant 'epochs', got 30"),
        ({"options": {"width": 1}}, "`value = 64` must hold for the constant 'options.width', got 1"),
        ({"layers": [9, 17]}, "`value = 16` must hold for the constant 'layers.1', got 17"),
        ({"epoch": 20}, r"`key in \['x', 'options.depth', 'layers.0', 'epochs', .*\]` must hold, got 'epoch'"),
        ({"options": {"height": 2}}, "got 'options.height'"),
        ({"layers": [9, 16, 3]}, "got 'layers.2'"),
    ],
)
def test_other_constants_than_those_of_the_space_are_refused_by_name(point, message):
    space = {
        "x": tune.uniform(0, 1),
        "epochs": 20,
        "options": {"width": 64, "depth": tune.randint(1, 4)},
        "layers": [tune.randint(8, 64), 16],
    }
    with pytest.raises(ValueError, match=message):
        searcher(space, points_to_evaluate=[point])


def test_grid_and_choice_points_are_checked_by_name():
    space = {"a": {"k": tune.qrandint(0, 8, 4), "c": tune.choice([1, True, "u"])}}
    for point, message in [
        ({"k": 5}, r"k \* 4` must hold for 'a\.k'"),
        ({"k": 12}, r"'a\.k'"),
        ({"c": "v"}, r"'a\.c'"),
    ]:
        with pytest.raises(ValueError, match=message):
            searcher(space, points_to_evaluate=[{"a": point}])
    given = searcher(space, points_to_evaluate=[{"a": {"k": 8, "c": True}}, {"a": {"c": 1}}])
    assert given.suggest("0")["a"] == {"k": 8, "c": True}
    assert type(given.suggest("1")["a"]["c"]) is int


def test_evaluated_points_count_and_are_not_suggested():
    search = searcher(points_to_evaluate=[{"x": 1.0, "y": 2.0}], evaluated_rewards=[0.5], n_initial_points=3)
    search.add_evaluated_point({"x": 2.0, "y": 2.0, "epochs": 3}, 0.7, pruned=True, intermediate_values=[1.0])
    search.add_evaluated_point({"x": 3.0, "y": 2.0}, math.nan, error=True)
    assert [record.value for record in search.finished] == [0.5, 0.7, None]
    assert search.suggest("a")["x"] not in (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="'y' in parameters"):
        search.add_evaluated_point({"x": 1.0}, 0.5)
