"""The Gaussian processes: what they are told, their lies, their prior, and the size of their data."""

import numpy as np
import pytest

from ray_deltastn.tune.search import model
from ray_deltastn.tune.search.model import LIES, Process, best_and_newest, fit, told
from ray_deltastn.tune.search.space import SearchSpace
from tests.tune.search.searches import PLANE, branin

SPACE = SearchSpace(PLANE)
DRAWS = np.random.RandomState(0)
KNOWN = [(float(x), float(y)) for x, y in zip(DRAWS.uniform(-5, 10, 12), DRAWS.uniform(0, 15, 12), strict=True)]
LOSSES = [branin({"x": x, "y": y}) for x, y in KNOWN]
RUNNING = (7.0, 13.0)


def believed(running, lie):
    """Mean and standard deviation of the model at the running trial, in standardised losses."""
    found = fit(SPACE, KNOWN, LOSSES, running, lie)
    mean, deviation = found.loss.predict(SPACE.columns(SPACE.units([RUNNING])))
    return mean[0], deviation[0]


@pytest.mark.parametrize("lie", LIES)
def test_the_model_is_certain_of_a_running_trial_and_has_the_value_of_the_lie_there(lie):
    mean, deviation = believed([], lie)
    with_mean, with_deviation = believed([RUNNING], lie)
    assert with_deviation < deviation / 2
    expected = {"model": mean, "mean": 0.0, "worst": max(told(LOSSES))}[lie]
    assert with_mean == pytest.approx(expected, abs=0.3)  # the process has noise


def test_predictions_are_those_of_the_dense_formula():
    x, y, at = DRAWS.uniform(size=(20, 2)), DRAWS.normal(size=20), DRAWS.uniform(size=(5, 2))
    process = Process(x, y)
    kernel, noise = process._kernel, process._noise
    inverse = np.linalg.inv(kernel(x) + (noise + 1e-8) * np.eye(20))
    mean, deviation = process.predict(at)
    assert mean == pytest.approx(kernel(at, x) @ inverse @ y, rel=1e-6)
    variance = kernel.diag(at) - np.einsum("ij,jk,ik->i", kernel(at, x), inverse, kernel(at, x))
    assert deviation**2 == pytest.approx(variance, rel=1e-6)


def test_the_kernel_maximises_likelihood_times_prior():
    x = DRAWS.uniform(size=(20, 2))
    fitted = Process(x, np.sin(5 * x[:, 0]) + 0.1 * DRAWS.normal(size=20))._process
    theta = np.append(fitted.kernel_.theta[:3], np.log(fitted.noise_))
    centre, width = np.array([model.VARIANCE, model.LENGTH, model.LENGTH, model.NOISE]).T

    def posterior(theta):
        kernel = fitted.kernel.clone_with_theta(theta)
        gram = kernel(x) + 1e-8 * np.eye(20)
        likelihood = -fitted.y_train_ @ np.linalg.solve(gram, fitted.y_train_) / 2 - np.linalg.slogdet(gram)[1] / 2
        return likelihood - (((theta - centre) / width) ** 2).sum() / 2

    for step in 0.1 * np.vstack([np.eye(4), -np.eye(4)]):
        assert posterior(theta + step) < posterior(theta)


def test_two_points_give_moderate_length_scales_and_noise():
    process = Process(np.array([[0.2, 0.5], [0.8, 0.5]]), np.array([-1.0, 1.0]))
    scales = np.exp(process._kernel.theta[1:3])
    assert ((scales > 0.1) & (scales < 3)).all()
    assert process._noise < 0.1


def test_success_is_likely_beside_successes_and_unlikely_beside_failures():
    losses = [None if x > 4 else loss for (x, _), loss in zip(KNOWN, LOSSES, strict=True)]
    good, bad = min(KNOWN), max(KNOWN)
    found = fit(SPACE, KNOWN, losses, [], "model")
    at = np.exp(found.log_success(SPACE.columns(SPACE.units([good, bad]))))
    assert at[0] > 0.9
    assert at[1] < 0.1
    assert len(found.y) == sum(loss is not None for loss in losses)
    sure = fit(SPACE, KNOWN, LOSSES, [], "model")
    assert sure.log_success(np.zeros((3, 2))).tolist() == [0.0] * 3


def test_losses_of_any_size_are_standardised():
    for losses in ([1e300, 1.0, 3.0, 2.0], [-1e308, 1e308, 0.0], [0.0, 0.0], [5e-324, 0.0, 1.0]):
        y = told(losses)
        assert np.isfinite(y).all()
        assert y.mean() == pytest.approx(0.0, abs=1e-9)


def test_the_best_and_the_newest_rows_are_kept():
    y = np.array([5.0, 0.0, 4.0, 1.0, 3.0, 9.0, 8.0, 2.0])
    assert best_and_newest(y, 8).tolist() == list(range(8))
    assert best_and_newest(y, 4).tolist() == [1, 3, 6, 7]
    assert best_and_newest(y, 5).tolist() == [1, 3, 4, 6, 7]


def test_the_kernel_of_many_trials_is_fitted_to_some_and_the_process_knows_all():
    x = DRAWS.uniform(size=(300, 2))
    process = Process(x, x[:, 0])
    assert len(process._process.X_train_) == 300
    assert process.predict(x)[0] == pytest.approx(x[:, 0], abs=0.05)
