"""The Gaussian process of `SkOptSearch`: fitted to finished trials, told a lie for each running one."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from skopt import Optimizer
from skopt.learning import GaussianProcessRegressor
from skopt.utils import cook_estimator, normalize_dimensions

from ray_deltastn.tune.search.space import Point, SearchSpace

logger = logging.getLogger(__name__)

LIES = ("model", "mean", "worst")
CEILING = 10.0


def fit(
    space: SearchSpace,
    known: Sequence[Point],
    losses: Sequence[float | None],
    running: Sequence[Point],
    lie: str,
    acq_func: str,
    rng: np.random.RandomState,
) -> Any:
    """Fit to the finished trials, add the lies, and return skopt's optimiser; None where the fit fails.

    Args:
        space: the search space.
        known: points of the finished trials.
        losses: their values, smaller is better; None where a trial failed. At least one is finite.
        running: points of the trials in flight.
        lie: what a running trial is told: one of `LIES`.
        acq_func: acquisition function of skopt.
        rng: source of randomness.
    """
    cube = normalize_dimensions(space.dimensions)
    x, y = [space.features(point) for point in known], told(losses)
    lies = [space.features(point) for point in running]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated points and bounds of the kernel: nothing a user can act on
            fitted = cook_estimator("GP", cube, random_state=rng.randint(2**31 - 1), n_restarts_optimizer=1)
            fitted.fit(cube.transform(x), y)
            # lies must not bend the kernel: it stays as fitted, with the noise (skopt zeroes it there) as alpha
            model = GaussianProcessRegressor(
                fitted.kernel_, alpha=max(fitted.noise_ or 0.0, 1e-10), optimizer=None, normalize_y=True
            )
            if lies and lie == "model":
                y = y + [float(value) for value in fitted.predict(cube.transform(lies))]
            else:
                y = y + [max(y) if lie == "worst" else 0.0] * len(lies)  # 0 is the mean of y
            optimizer = Optimizer(
                cube,
                model,
                n_initial_points=0,
                acq_func=acq_func,
                acq_optimizer_kwargs={"n_points": 2000, "n_restarts_optimizer": 3},
                random_state=rng,
                avoid_duplicates=False,  # the searcher does it, by configs instead of by coordinates
            )
            optimizer.tell(x + lies, y)
    except (ValueError, np.linalg.LinAlgError) as error:  # an exception here would end the whole experiment
        logger.warning("the Gaussian process could not be fitted (%s); an initial point is suggested", error)
        return None
    return optimizer


def told(losses: Sequence[float | None]) -> list[float]:
    """Return y of the finished trials: capped, failed ones as the worst, mean 0 and deviation 1."""
    values = sorted(loss for loss in losses if loss is not None)
    top = min(ceiling(values), values[-1])
    y = np.array([top if loss is None else min(loss, top) for loss in losses])
    return [float(z) for z in (y - y.mean()) / (y.std() or 1.0)]


def ceiling(values: Sequence[float]) -> float:
    """Return the largest y told: `median + 10 (median - best)`, or the smallest y above the median if median = best.

    `values` is sorted, smallest (best) first; the median is the lower one.
    """
    median = values[(len(values) - 1) // 2]
    if median > values[0]:
        return median + CEILING * (median - values[0])
    return next((value for value in values if value > median), median)
