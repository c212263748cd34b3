"""The Gaussian process of `SkOptSearch`: it is fitted to finished trials and assumes a loss for each running one.

An assumed loss is called a lie, as in the literature (constant liar, kriging believer).
"""

import logging
import warnings
from collections.abc import Sequence

import numpy as np
from skopt import Optimizer
from skopt.learning import GaussianProcessRegressor
from skopt.utils import cook_estimator, normalize_dimensions

from ray_deltastn.tune.search.space import Point, SearchSpace

logger = logging.getLogger(__name__)

#: The loss that is assumed for a running trial: the model's prediction, or the mean or the worst loss so far.
LIES = ("model", "mean", "worst")
#: A loss counts at most as `median + CEILING * (median - best)`.
CEILING = 10.0


def fit(
    space: SearchSpace,
    known: Sequence[Point],
    losses: Sequence[float | None],
    running: Sequence[Point],
    lie: str,
    acq_func: str,
    rng: np.random.RandomState,
) -> Optimizer | None:
    """Fit the model to the finished trials, add the running ones, and return an optimiser of skopt.

    Args:
        space: the search space.
        known: points of the finished trials.
        losses: losses of the finished trials, smaller is better; None for a failed one. At least one is a number.
        running: points of the running trials.
        lie: what is assumed of a running trial, one of `LIES`.
        acq_func: acquisition function of skopt.
        rng: source of randomness.

    Returns:
        The optimiser, whose `ask` proposes a point; None if the fit fails.
    """
    cube = normalize_dimensions(space.dimensions)
    x, y = [space.features(point) for point in known], told(losses)
    lies = [space.features(point) for point in running]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about repeated points and kernel bounds, which a user cannot change
            fitted = cook_estimator("GP", cube, random_state=rng.randint(2**31 - 1), n_restarts_optimizer=1)
            fitted.fit(cube.transform(x), y)
            # The lies must not change the kernel: it is kept as fitted. skopt has set its noise to zero; alpha adds it.
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
                avoid_duplicates=False,  # the searcher avoids them: it compares configs instead of coordinates
            )
            optimizer.tell(x + lies, y)
    except (ValueError, np.linalg.LinAlgError) as error:  # an exception would end the whole experiment
        logger.warning("the Gaussian process could not be fitted (%s); an initial point is suggested", error)
        return None
    return optimizer


def told(losses: Sequence[float | None]) -> list[float]:
    """Return y of the finished trials: losses up to the ceiling, standardised; a failed trial has the worst loss."""
    values = sorted(loss for loss in losses if loss is not None)
    top = min(ceiling(values), values[-1])
    y = np.array([top if loss is None else min(loss, top) for loss in losses])
    return [float(z) for z in (y - y.mean()) / (y.std() or 1.0)]


def ceiling(values: Sequence[float]) -> float:
    """Return the largest loss that the model is told: `median + 10 (median - best)`.

    If the median equals the best, it is the smallest loss above the median, or the median if there is none.

    Args:
        values: losses, sorted, the best (smallest) first. Of an even number the lower median counts.
    """
    median = values[(len(values) - 1) // 2]
    if median > values[0]:
        return median + CEILING * (median - values[0])
    return next((value for value in values if value > median), median)
