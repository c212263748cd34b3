"""Grids cover every domain with points that are distinct."""

import pytest
from ray import tune

from ray_deltastn.tune.search.grid import grid_points
from tests.tune.search.proposals import SPACE


def flat(points):
    return [(p["lr"], p["hyperparameters"]["dropout"], p["hyperparameters"]["holes"], p["schedule"]) for p in points]


def test_grid_holds_the_middles_of_equal_parts():
    points = flat(grid_points(SPACE, 16, seed=0))
    assert len(set(points)) == 16
    columns = [sorted(set(column), key=str) for column in zip(*points, strict=True)]
    assert columns[0] == pytest.approx([0.1**1.5, 0.1**0.5])
    assert columns[1] == pytest.approx([0.2, 0.6])
    assert columns[2:] == [[1, 3], [None, "cosine"]]


@pytest.mark.parametrize("count", [1, 5, 40, 1000])
def test_a_part_of_a_larger_grid_has_distinct_points(count):
    assert len(set(flat(grid_points(SPACE, count, seed=0)))) == count


def test_grid_of_many_dimensions_is_never_listed():
    space = {f"x{i}": tune.uniform(0, 1) for i in range(40)}
    points = grid_points(space, 8, seed=0)
    assert len({tuple(point.values()) for point in points}) == 8
    assert {value for point in points for value in point.values()} == {0.25, 0.75}


def test_grid_respects_steps_and_says_when_there_are_too_few_points():
    points = grid_points({"width": tune.quniform(0, 1, 0.25)}, 3, seed=0)
    assert sorted(point["width"] for point in points) == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="`num_samples` must be at most the 2 points of the grid, got 3"):
        grid_points({"name": tune.choice(["a", "b"])}, 3, seed=0)
    with pytest.raises(ValueError, match="`num_samples` must be at most the 3 points of the grid, got 4"):
        grid_points({"width": tune.qrandint(1, 10, 3)}, 4, seed=0)
    assert len(grid_points({"width": tune.lograndint(1, 100)}, 10, seed=0)) == 10
    with pytest.raises(ValueError, match="`num_samples` must be at most the 99 points of the grid, got 100"):
        grid_points({"width": tune.lograndint(1, 100)}, 100, seed=0)
    with pytest.raises(ValueError, match=r"`domain in .*` must hold for 'x', got randn"):
        grid_points({"x": tune.randn(0, 1)}, 3, seed=0)


def test_a_domain_in_a_list_is_part_of_the_grid():
    points = grid_points({"widths": [16, tune.randint(1, 4)], "depth": 2}, 3, seed=0)
    assert sorted(point["widths"] for point in points) == [[16, 1], [16, 2], [16, 3]]
    assert {tuple(point) for point in points} == {("widths",)}
