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
    """Add noise to each element: x + σ·z with z ~ N(0, 1). The result is not clamped.

    Args:
        sigma: hyperparameter for the standard deviation σ ≥ 0 in units of `x`, or a constant.

    Raises:
        TypeError: if `sigma` is neither a name nor a number.
        ValueError: if `sigma` is negative or not finite.
    """

    def __init__(self, sigma: Strength) -> None:
        check_constant(type(self).__name__, "sigma", sigma)
        self.sigma = sigma
        self.names: tuple[str, ...] = names_of(sigma)

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless the domain of the standard deviation has a lower bound of at least zero."""
        check_domain(type(self).__name__, "sigma", self.sigma, space)

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Inputs (B, …) with noise, of the same shape.

        Raises:
            ValueError: if `x` holds integers other than uint8.
        """
        x = as_float(x)
        return x + self._noise(x, pass_values)

    def _noise(self, x: Tensor, pass_values: PassValues) -> Tensor:
        z = torch.randn(x.shape, generator=pass_values.generator, device=x.device, dtype=x.dtype)
        return strength_value(self.sigma, pass_values, like=x) * z


class ScalingNoise(GaussianNoise):
    """Multiply each element by noise with mean one: x·(1 + σ·z) with z ~ N(0, 1). The result is not clamped.

    Args:
        sigma: hyperparameter for the relative standard deviation σ ≥ 0, or a constant.

    Raises:
        TypeError: if `sigma` is neither a name nor a number.
        ValueError: if `sigma` is negative or not finite.
    """

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Inputs (B, …) with noise, of the same shape.

        Raises:
            ValueError: if `x` holds integers other than uint8.
        """
        x = as_float(x)
        return x * (1 + self._noise(x, pass_values))
