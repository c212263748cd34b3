"""The Gaussian process of `SkOptSearch`: it is fitted to finished trials and assumes a loss for each running one.

| symbol | name in code  | meaning                                                          | shape  |
|--------|---------------|------------------------------------------------------------------|--------|
| X      | x             | points as columns of numbers, see `SearchSpace.columns`          | (n, m) |
| y      | y             | losses that the model is told, standardised                      | (n,)   |
| θ      | theta         | logarithms of the variance s², the length scales ℓ, the noise σ² | (m+2,) |

The kernel is `s² Matérn₅/₂(x / ℓ) + σ²`. θ maximises the likelihood times a prior. So a few points cannot make ℓ or σ²
extreme. An assumed loss is called a lie, as in the literature (constant liar, kriging believer).
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

logger = logging.getLogger(__name__)

import os, json
OPT = {"l0": -0.5, "ls": 1.0, "ld": 0.0, "n0": -6.0, "ns": 2.0, "v0": 0.0, "vs": 1.0, "ceil": 3.0, "yj": 0, "best": "mean", "init": "d+1", "acq": "EI", "starts": 1, "xi": 0.0, "rand": 0, "feas": 1, "beta": 0.0, "clipbest": 0}
OPT.update(json.loads(os.environ.get("W1_OPT", "{}")))
LIES = ("model", "mean", "worst")
CEILING = OPT["ceil"]
MOST = 128


class Model:
    def __init__(self, x, y, running, lie, rng):
        m = x.shape[1]
        centre = np.r_[OPT["v0"], np.full(m, OPT["l0"] + OPT["ld"] * np.log(m)), OPT["n0"]]
        width = np.r_[OPT["vs"], np.full(m, OPT["ls"]), OPT["ns"]]
        kernel = ConstantKernel(np.exp(centre[0]), (1e-3, 1e3)) * Matern(
            np.exp(centre[1:-1]), (1e-2, 1e2), nu=2.5
        ) + WhiteKernel(np.exp(centre[-1]), (1e-6, 1.0))

        def optimise(objective, initial, bounds):
            def penalised(theta):
                value, gradient = objective(theta)
                off = (theta - centre) / width
                return value + off @ off / 2, gradient + off / width

            best = None
            for k in range(OPT["starts"]):
                start = centre if k == 0 else centre + width * rng.normal(size=len(centre))
                start = np.clip(start, bounds[:, 0], bounds[:, 1])
                found = minimize(penalised, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 50})
                if best is None or found.fun < best.fun:
                    best = found
            return best.x, best.fun

        rows = np.arange(len(y))
        if len(rows) > MOST:
            order = np.argsort(y, kind="stable")
            rows = np.unique(np.r_[order[: MOST // 2], rows[-MOST // 2 :]])
        fitted = GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=optimise)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted.noise = "gaussian"
            fitted.fit(x[rows], y[rows])
            self.noise = fitted.noise_
            self.kernel = fitted.kernel_
            self.gp = fitted
            if len(rows) < len(y):
                self._condition(x, y)
            self.best = float(self.predict(x)[0].min()) if OPT["best"] == "mean" else float(y.min())
            if len(running):
                lies = {"model": self.predict(running)[0], "mean": np.zeros(len(running)), "worst": np.full(len(running), y.max())}[lie]
                self._condition(np.r_[x, running], np.r_[y, lies])

    def _condition(self, x, y):
        self.gp = GaussianProcessRegressor(self.kernel, alpha=self.noise + 1e-8, optimizer=None).fit(x, y)

    def predict(self, x):
        from sklearn.gaussian_process import GaussianProcessRegressor as Plain
        return Plain.predict(self.gp, x, return_std=True)


def told(losses):
    """y."""
    values = sorted(loss for loss in losses if loss is not None)
    top = min(ceiling(values), values[-1])
    y = np.array([top if loss is None else min(loss, top) for loss in losses])
    y = (y - y.mean()) / (y.std() or 1.0)
    if OPT["yj"] and len(set(y)) > 2:
        from sklearn.preprocessing import PowerTransformer
        y = PowerTransformer().fit_transform(y[:, None])[:, 0]
    if OPT["rand"]:
        from scipy.stats import rankdata, norm
        y = norm.ppf((rankdata(y) - 0.5) / len(y)); y = (y - y.mean()) / (y.std() or 1.0)
    return y


def ceiling(values: Sequence[float]) -> float:
    median = values[(len(values) - 1) // 2]
    if median > values[0]:
        return median + CEILING * (median - values[0])
    return next((value for value in values if value > median), median)
