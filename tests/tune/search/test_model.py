"""The Gaussian process knows the running trials, and what each lie says of them."""

import numpy as np
import pytest

from ray_deltastn.tune.search.model import LIES, fit, told
from ray_deltastn.tune.search.space import SearchSpace
from tests.tune.search.searches import PLANE, branin

SPACE = SearchSpace(PLANE)
DRAWS = np.random.RandomState(0)
KNOWN = [(float(x), float(y)) for x, y in zip(DRAWS.uniform(-5, 10, 12), DRAWS.uniform(0, 15, 12), strict=True)]
LOSSES = [branin({"x": x, "y": y}) for x, y in KNOWN]
RUNNING = (7.0, 13.0)


def believed(running, lie):
    """Mean and standard deviation of the model at the running trial, in standardised losses."""
    optimizer = fit(SPACE, KNOWN, LOSSES, running, lie, "EI", np.random.RandomState(1))
    mean, deviation = optimizer.models[-1].predict(
        optimizer.space.transform([SPACE.features(RUNNING)]), return_std=True
    )
    return mean[0], deviation[0]


@pytest.mark.parametrize("lie", LIES)
def test_the_model_is_certain_of_a_running_trial_and_has_the_value_of_the_lie_there(lie):
    mean, deviation = believed([], lie)
    with_mean, with_deviation = believed([RUNNING], lie)
    assert with_deviation < deviation / 10
    expected = {"model": mean, "mean": 0.0, "worst": max(told(LOSSES))}[lie]
    assert with_mean == pytest.approx(expected, abs=0.05)
