"""Dropout with one rate per example."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_deltastn.regularizers.base import Regularizer
from ray_deltastn.space import HyperSpace


class Dropout(Regularizer):
    """Zero each element with probability p, and divide the rest by 1 − p.

    y = x ⊙ m / (1 − p) with m ~ Bernoulli(1 − p); p has one value per example in a response pass and λ's value in the
    weights' own pass. In evaluation mode y = x. Works on inputs (B, …) of any shape, so it is input dropout when it
    comes first.

    Args:
        name: the hyperparameter that holds p, with a domain inside [0, 1].
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless every value of the rate is a probability."""
        low, high = space.hyperparameters[self.names[0]].bounds
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"`0 <= low < high <= 1` must hold for the rate of {type(self).__name__}, got low={low}, high={high} "
                f"for '{self.names[0]}'"
            )

    def mask_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the mask; broadcasts against `x`."""
        return tuple(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Dropped-out `x` of the same shape."""
        if not self.training:
            return x
        p = self.pass_values.value(self.names[0], like=x)
        keep = self.pass_values.rand(*self.mask_shape(x), like=x) >= p
        # At p = 1 nothing is kept, and nothing divided by zero.
        return x * (keep / (1 - p).clamp_min(torch.finfo(x.dtype).eps)).to(x.dtype)


class ChannelDropout(Dropout):
    """Zero each channel of (B, C, …) with probability p, and divide the rest by 1 − p, like `nn.Dropout2d`."""

    def mask_shape(self, x: Tensor) -> tuple[int, ...]:
        """(B, C, 1, …)."""
        return (*x.shape[:2], *(1,) * (x.dim() - 2))
