"""Gaussian noise on inputs, added or multiplied, with one strength per example."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_deltastn.regularizers.base import PassValues
from ray_deltastn.regularizers.strength import (
    Strength,
    as_float,
    check_constant,
    check_domain,
    names_of,
    strength_value,
)
from ray_deltastn.space import HyperSpace


class GaussianNoise:
    """Add noise to each element: x + σ·z with z ~ N(0, 1); nothing is clamped.

    Args:
        sigma: hyperparameter that holds the standard deviation σ ≥ 0, in units of `x`, or a constant one.

    Raises:
        TypeError: if it is neither a name nor a number.
        ValueError: if it is negative.
    """

    def __init__(self, sigma: Strength) -> None:
        check_constant(type(self).__name__, "sigma", sigma)
        self.sigma = sigma
        self.names: tuple[str, ...] = names_of(sigma)

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless the standard deviation is at least zero in its whole domain."""
        check_domain(type(self).__name__, "sigma", self.sigma, space)

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Noisy inputs (B, …), of any shape, of the same shape.

        Raises:
            ValueError: if they are whole numbers other than bytes.
        """
        x = as_float(x)
        return x + self._noise(x, pass_values)

    def _noise(self, x: Tensor, pass_values: PassValues) -> Tensor:
        z = torch.randn(x.shape, generator=pass_values.generator, device=x.device, dtype=x.dtype)
        return strength_value(self.sigma, pass_values, like=x) * z


class ScalingNoise(GaussianNoise):
    """Multiply each element by noise about one: x·(1 + σ·z) with z ~ N(0, 1); nothing is clamped.

    Args:
        sigma: hyperparameter that holds the relative standard deviation σ ≥ 0, or a constant one.

    Raises:
        TypeError: if it is neither a name nor a number.
        ValueError: if it is negative.
    """

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Noisy inputs (B, …), of any shape, of the same shape.

        Raises:
            ValueError: if they are whole numbers other than bytes.
        """
        x = as_float(x)
        return x * (1 + self._noise(x, pass_values))
