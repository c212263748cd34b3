"""Random horizontal flip with one probability per image."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_deltastn.regularizers.base import PassValues
from ray_deltastn.regularizers.strength import (
    Strength,
    as_images,
    check_constant,
    check_domain,
    names_of,
    strength_value,
)
from ray_deltastn.space import HyperSpace


class RandomHorizontalFlip:
    """Mirror each image left to right with probability p, like torchvision's `RandomHorizontalFlip`.

    Args:
        p: hyperparameter for the probability, with a domain inside [0, 1], or a constant.

    Raises:
        TypeError: if `p` is neither a name nor a number.
        ValueError: if the number is not in [0, 1].
    """

    def __init__(self, p: Strength = 0.5) -> None:
        check_constant("RandomHorizontalFlip", "p", p, 1.0)
        self.p = p
        self.names: tuple[str, ...] = names_of(p)

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless the domain of the probability lies in [0, 1]."""
        check_domain("RandomHorizontalFlip", "p", self.p, space, 1.0)

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Images (B, C, H, W), of which some are mirrored.

        Raises:
            ValueError: if `x` is not a batch of images.
        """
        x = as_images(x, "RandomHorizontalFlip")
        mirrored = pass_values.rand(len(x), 1, 1, 1, like=x) < strength_value(self.p, pass_values, like=x)
        return torch.where(mirrored, x.flip(-1), x)
