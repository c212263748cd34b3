"""The Gaussian processes of `SkOptSearch`: of the loss, and of the success of a trial.

| symbol | name in code | meaning                                                           | shape  |
|--------|--------------|-------------------------------------------------------------------|--------|
| X      | x            | points as columns of numbers, see `SearchSpace.columns`           | (n, m) |
| y      | y            | losses that the model is told, standardised; or success, 1 or −1  | (n,)   |
| θ      | theta        | logarithms of the variance s², the m length scales ℓ, the noise σ² | (m+2,) |

The kernel is `s² Matérn₅/₂(x / ℓ) + σ²`. θ maximises the likelihood times a normal prior. So a few points cannot make a
length scale or the noise extreme. A loss that is assumed for a running trial is called a lie, as in the literature
(constant liar, kriging believer).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_ndtr
from sklearn.gaussian_process import GaussianProcessRegressor as Plain
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from ray_deltastn.tune.search.space import Point, SearchSpace

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

#: The loss that is assumed for a running trial: the model's prediction, or the mean or the worst loss so far.
LIES = ("model", "mean", "worst")
#: A loss counts at most as `median + CEILING * (median - best)`.
CEILING = 3.0
#: Mean and standard deviation of the normal prior of log s², of each log ℓ, and of log σ².
VARIANCE, LENGTH, NOISE = (0.0, 1.0), (-0.5, 1.0), (-5.0, 2.0)
#: θ is fitted to at most this many trials, and the process is conditioned on at most this many.
FITTED, CONDITIONED = 128, 1000
#: Variance of the success of a trial beside that of its Gaussian process.
DOUBT = 0.05


class Process:
    """A Gaussian process whose kernel is fitted to x and y.

    Args:
        x: points, shape (n, m).
        y: values, shape (n,).
    """

    def __init__(self, x: Floats, y: Floats) -> None:
        self._x, self._y = x, y
        columns = x.shape[1]
        centre, width = np.array([VARIANCE, *[LENGTH] * columns, NOISE]).T
        kernel = ConstantKernel(np.exp(centre[0]), (1e-3, 1e3)) * Matern(np.exp(centre[1:-1]), (1e-2, 1e2), nu=2.5)
        kernel += WhiteKernel(np.exp(centre[-1]), (1e-6, 1.0))

        def most_probable(objective: Callable[..., Any], theta: Floats, bounds: Floats) -> tuple[Floats, float]:
            def loss(theta: Floats) -> tuple[float, Floats]:
                value, gradient = objective(theta)
                off = (theta - centre) / width
                return value + off @ off / 2, gradient + off / width

            found = minimize(loss, theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 50})
            return found.x, found.fun

        rows = best_and_newest(y, FITTED)
        self._process = _quietly(
            GaussianProcessRegressor(kernel, alpha=1e-8, noise="gaussian", optimizer=most_probable).fit,
            x[rows],
            y[rows],
        )
        # skopt has set the noise of the fitted kernel to zero, because predictions are without noise; alpha adds it.
        self._kernel, self._noise = self._process.kernel_, max(self._process.noise_ or 0.0, 1e-6)
        if len(rows) < len(y):
            self._condition(x, y)

    def assume(self, x: Floats, y: Floats) -> None:
        """Condition the process on more points; the kernel stays as it is."""
        self._condition(np.concatenate([self._x, x]), np.concatenate([self._y, y]))

    def _condition(self, x: Floats, y: Floats) -> None:
        rows = best_and_newest(y, CONDITIONED)
        same = GaussianProcessRegressor(self._kernel, alpha=self._noise, optimizer=None)
        self._process = _quietly(same.fit, x[rows], y[rows])

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation at points, without the noise of an observation."""
        # skopt's own prediction takes n² operations per point in a slow loop; scikit-learn's gives the same numbers.
        mean, deviation = _quietly(Plain.predict, self._process, x, return_std=True)
        return mean, np.maximum(deviation, 1e-9)


class Model:
    """What is known about the loss and the success of a trial at each point of a space.

    Args:
        space: the search space.
        known: points of the finished trials.
        losses: losses of the finished trials, smaller is better; None for a failed one. At least one is a number.
        running: points of the running trials.
        lie: what is assumed of a running trial, one of `LIES`.

    Attributes:
        y: what the process of the loss is told, of the finished trials with a loss.
        valued: points of these trials in the unit cube.
        best: the smallest mean of the loss at these points.
        trials: number of finished trials.
    """

    def __init__(
        self,
        space: SearchSpace,
        known: Sequence[Point],
        losses: Sequence[float | None],
        running: Sequence[Point],
        lie: str,
    ) -> None:
        units, success = space.units(known), np.array([loss is not None for loss in losses])
        self.trials = len(known)
        self.valued, self.y = units[success], told([loss for loss in losses if loss is not None])
        x = space.columns(self.valued)
        self.loss = Process(x, self.y)
        self.best = float(self.loss.predict(x)[0].min())
        if running:
            live = space.columns(space.units(running))
            mean = self.loss.predict(live)[0]
            self.loss.assume(live, {"model": mean, "mean": 0 * mean, "worst": 0 * mean + self.y.max()}[lie])
        self._success = None if success.all() else Process(space.columns(units), np.where(success, 1.0, -1.0))

    def log_success(self, x: Floats) -> Floats:
        """Return the logarithm of the probability that a trial has a loss; 0 if no trial has failed yet."""
        if self._success is None:
            return np.zeros(len(x))
        mean, deviation = self._success.predict(x)
        found: Floats = log_ndtr(mean / np.sqrt(DOUBT + deviation**2))
        return found


def fit(
    space: SearchSpace, known: Sequence[Point], losses: Sequence[float | None], running: Sequence[Point], lie: str
) -> Model | None:
    """Return the `Model` with these arguments, or None if its kernel cannot be fitted."""
    try:
        return Model(space, known, losses, running, lie)
    except (ValueError, np.linalg.LinAlgError) as error:  # an exception would end the whole experiment
        logger.warning("the Gaussian process could not be fitted (%s); an initial point is suggested", error)
        return None


def best_and_newest(y: Floats, most: int) -> npt.NDArray[np.intp]:
    """Return the rows of the best and of the newest values, at most `most` rows in all, in their order."""
    if len(y) <= most:
        return np.arange(len(y))
    newest = np.arange(len(y) - most // 2, len(y))
    best = np.argsort(y[: newest[0]], kind="stable")[: most - len(newest)]
    return np.concatenate([np.sort(best), newest])


def told(losses: Sequence[float]) -> Floats:
    """Return losses up to the ceiling, standardised."""
    y = np.minimum(losses, ceiling(sorted(losses)))
    y = y / (np.abs(y).max() or 1.0)  # the squares of huge losses overflow
    standardised: Floats = (y - y.mean()) / (y.std() or 1.0)
    return standardised


def ceiling(values: Sequence[float]) -> float:
    """Return the largest loss that the model is told: `median + 3 (median - best)`.

    If the median equals the best, it is the smallest loss above the median, or the median if there is none.

    Args:
        values: losses, sorted, the best (smallest) first. Of an even number the lower median counts.
    """
    median = values[(len(values) - 1) // 2]
    if median > values[0]:
        return median + CEILING * (median - values[0])
    return next((value for value in values if value > median), median)


def _quietly(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function without its warnings, which are about kernel bounds and rounding: a user cannot change them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **named)
