"""Dropout with one rate per example."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ray_deltastn.regularizers.base import Regularizer
from ray_deltastn.regularizers.rates import Rate
from ray_deltastn.space import HyperSpace


def check_rate(layer: Regularizer, space: HyperSpace) -> None:
    """Raise ValueError unless the domain of the rate of a layer lies in [0, 1]."""
    low, high = space.hyperparameters[layer.names[0]].bounds
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"`0 <= low < high <= 1` must hold for the rate of {type(layer).__name__}, got low={low}, high={high} "
            f"for '{layer.names[0]}'"
        )


class Dropout(Regularizer):
    """Set each element to zero with probability p, and divide the others by 1 − p.

    y = x ⊙ m / (1 − p) with m ~ Bernoulli(1 − p). In a pass that trains the response, p has one value per example. In
    a pass that trains w₀ alone, all examples share p = s(λ). In evaluation mode y = x.

    Inputs (B, …) may have any shape. As the first layer of a model it is input dropout.

    Args:
        name: hyperparameter for p, with a domain inside [0, 1].
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless the domain of the rate lies in [0, 1]."""
        check_rate(self, space)

    @property
    def p(self) -> float:
        """The rate, for models that read it instead of calling the layer, such as fused attention; see `Rate`.

        Raises:
            RuntimeError: in training mode outside a run.
        """
        if not self.training:
            return 0.0
        _ = self.pass_values  # raises outside a run
        # Not a rate: a function that gets this number without the rules of `ReadRates` refuses it.
        return Rate(self, math.nan)

    def mask_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the mask, which broadcasts over `x`."""
        return tuple(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """`x` after dropout, of the same shape."""
        if not self.training:
            return x
        p = self.pass_values.value(self.names[0], like=x, layout=self.layout)
        keep = self.pass_values.rand(*self.mask_shape(x), like=x) >= p
        # At p = 1 every element is dropped. The clamp avoids a division by zero.
        return x * (keep / (1 - p).clamp_min(torch.finfo(x.dtype).eps)).to(x.dtype)


class ChannelDropout(Dropout):
    """Set each channel of (B, C, …) to zero with probability p, and divide the others by 1 − p, like `nn.Dropout2d`."""

    def mask_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the mask, (B, C, 1, …)."""
        return (*x.shape[:2], *(1,) * (x.dim() - 2))
