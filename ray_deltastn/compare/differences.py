"""Differences between the methods of a comparison, with confidence intervals and adjusted p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from ray_deltastn.compare.contenders import CONTENDERS
from ray_deltastn.compare.outcomes import OUTCOMES, REFERENCE, finite

#: Second reference, for self-tuned single runs.
CONTROL = "fixed"


@dataclass(frozen=True)
class Difference:
    """Mean difference of an outcome between two methods, paired by seed, with its 95 % interval by Student's t.

    Attributes:
        method: the method.
        reference: the method whose outcome is subtracted.
        outcome: column of `outcomes`.
        seeds: number of requested seeds.
        n: number of seeds for which both outcomes are finite.
        mean: mean difference, method minus reference.
        half_width: half the width of the interval, not adjusted for the number of differences.
        p: p-value of a t-test of zero mean, adjusted for all differences of the comparison (Holm 1979).
    """

    method: str
    reference: str
    outcome: str
    seeds: int
    n: int
    mean: float
    half_width: float
    p: float = math.nan

    @property
    def verdict(self) -> str:
        """`lower` or `higher` if the adjusted p is below 0.05 and every seed has finite losses."""
        if self.n < self.seeds:
            return f"no conclusion: {self.seeds - self.n} of {self.seeds} seeds have no pair of finite losses"
        if self.n < 2:
            return "no conclusion: only one seed"
        if self.mean == self.half_width == 0:
            return "the same runs"
        # p can be small even if the losses differ only by rounding.
        if not self.p < 0.05 or abs(self.mean) <= 1e-9:
            return "within the noise"
        return "lower" if self.mean < 0 else "higher"

    @property
    def figures(self) -> str:
        """The mean and half the width of its interval, as text."""
        if self.n == 0:
            return "–"
        return f"{self.mean:+.4f}".replace("-", "−") + (f" ± {self.half_width:.4f}" if self.n > 1 else "")

    def __str__(self) -> str:
        return f"{self.method} − {self.reference}, {OUTCOMES[self.outcome]}: {self.figures}, {self.verdict}"


def differences(
    per_seed: pd.DataFrame, names: Sequence[str] = ("best_valid_loss", "test_loss"), seeds: int | None = None
) -> list[Difference]:
    """Differences of every method to `random`, and of self-tuned single runs also to `fixed`.

    If `random` is not part of the comparison, the first method is the reference. The p-values are adjusted for the
    number of differences (Holm).

    Args:
        per_seed: one row per method and seed, see `outcomes`.
        names: columns of `per_seed` to compare.
        seeds: number of requested seeds; by default the number of seeds in `per_seed`.
    """
    seeds = per_seed["seed"].nunique() if seeds is None else seeds
    methods = list(dict.fromkeys(per_seed["method"]))
    reference = REFERENCE if REFERENCE in methods else methods[0]
    pairs = [(method, reference) for method in methods if method != reference]
    if CONTROL in methods and reference != CONTROL:
        pairs += [
            (method, CONTROL) for method in methods if CONTENDERS[method].tuned and not CONTENDERS[method].searcher
        ]
    indexed = per_seed.set_index(["method", "seed"])
    found: list[Difference] = []
    for outcome in names:
        if indexed[outcome].isna().all():
            continue  # the task has no test data
        for method, rival in pairs:
            apart = indexed.loc[method][outcome] - indexed.loc[rival][outcome]
            known = finite(apart).dropna()
            mean = float(known.mean()) if len(known) else math.nan
            wide, p = half_width(known), p_value(known)
            found.append(Difference(method, rival, outcome, seeds, len(known), mean, wide, p))
    adjusted = holm([one.p for one in found])
    return [replace(one, p=p) for one, p in zip(found, adjusted, strict=True)]


def p_value(values: Sequence[float] | pd.Series) -> float:
    """Two-sided p-value of zero mean, by t = mean / (s / √n) with n − 1 degrees of freedom; NaN for n < 2."""
    if len(values) < 2:
        return math.nan
    mean, width = abs(float(np.mean(values))), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(2 * stats.t.sf(mean / width, len(values) - 1)) if width > 0 else float(mean == 0)


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number m, which controls the family-wise error rate; NaN values stay NaN.

    The i-th smallest value becomes the maximum over j ≤ i of min(1, (m − j + 1) p_j) (Holm 1979).
    """
    order = sorted((p, place) for place, p in enumerate(values) if not math.isnan(p))
    adjusted, most = [math.nan] * len(values), 0.0
    for rank, (p, place) in enumerate(order):
        most = max(most, min(1.0, (len(order) - rank) * p))
        adjusted[place] = most
    return adjusted


def half_width(values: Sequence[float] | pd.Series) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t; NaN for n < 2."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
