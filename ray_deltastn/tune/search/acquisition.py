"""acq."""
import numpy as np
from scipy.special import erfcx, log_ndtr
from scipy.stats import qmc

CANDIDATES, CENTRES, AROUND = 1024, 8, 32
STEPS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)


def log_ei(z):
    """log(φ(z) + z Φ(z))"""
    with np.errstate(all="ignore"):
        near = np.log(np.maximum(np.exp(-z**2 / 2) / np.sqrt(2 * np.pi) + z * np.exp(log_ndtr(z)), 1e-300))
        inner = 1 + z * np.sqrt(np.pi / 2) * erfcx(-z / np.sqrt(2))
        mid = -(z**2) / 2 - np.log(2 * np.pi) / 2 + np.log(np.maximum(inner, 1e-300))
        far = -(z**2) / 2 - np.log(2 * np.pi) / 2 - 2 * np.log(np.maximum(-z, 1e-30))
    return np.where(z > -1, near, np.where(z > -1e3, mid, far))


def score(name, mean, std, best, xi=0.0):
    std = np.maximum(std, 1e-12)
    z = (best - xi - mean) / std
    if name == "EI":
        return log_ei(z) + np.log(std)
    return z if name == "PI" else 1.96 * std - mean


def maximise(space, model, name, known, y, rng, seen):
    from ray_deltastn.tune.search.model import OPT
    d = len(space.axes)
    def f(units):
        columns = space.columns(units)
        value = score(name, *model.predict(columns), model.best, OPT["xi"])
        if model.feasible is not None:
            mean, std = model.feasible.predict(columns)
            value = value + log_ndtr(mean / np.sqrt(0.05 + std**2))
        if OPT["beta"]:
            for i, axis in enumerate(space.axes):
                if not hasattr(axis, "categories"):
                    value = value + OPT["beta"] / model.n * np.log(np.maximum(4 * units[:, i] * (1 - units[:, i]), 0.02))
        return value
    sobol = qmc.Sobol(d, seed=int(rng.randint(2**31 - 1))).random(CANDIDATES)
    order = np.argsort(y, kind="stable")[:4]
    near = np.clip(known[np.repeat(order, 16)] + 0.1 * rng.normal(size=(16 * len(order), d)), 0, 1)
    units = space.snapped(np.r_[sobol, near])
    values = f(units)
    at = np.argsort(-values, kind="stable")[:CENTRES]
    centres, tops = units[at], values[at]
    for step in STEPS:
        moved = np.repeat(centres[:, None], AROUND, 1)
        mask = rng.uniform(size=moved.shape) < max(0.4, 1.0 / d)
        moved = moved + mask * step * rng.normal(size=moved.shape)
        for i, axis in enumerate(space.axes):
            if hasattr(axis, "categories"):
                change = rng.uniform(size=moved.shape[:2]) < 0.1
                moved[..., i] = np.where(change, rng.uniform(size=change.shape), centres[:, None, i])
        moved = space.snapped(np.clip(moved, 0, 1).reshape(-1, d))
        found = f(moved).reshape(len(centres), AROUND)
        best = found.argmax(1)
        better = found[np.arange(len(centres)), best] > tops
        centres = np.where(better[:, None], moved.reshape(len(centres), AROUND, d)[np.arange(len(centres)), best], centres)
        tops = np.maximum(tops, found.max(1))
    for row in np.argsort(-tops, kind="stable"):
        point = space.from_units(centres[row])
        if point not in seen:
            return point
    for row in np.argsort(-values, kind="stable"):
        point = space.from_units(units[row])
        if point not in seen:
            return point
    return None
