"""Random rotation, translation, scale and shear in one resampling, with one strength and one draw per image.

torchvision's version takes one strength for the whole batch. On a single image both give the same result
(`tests/regularizers/test_augmentation.py`).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
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


class RandomAffine:
    """Rotate, shear, scale and translate each image at random about its centre, like torchvision's `RandomAffine`.

    Each image draws an angle ~ U[−d, d], a shift ~ U[−t, t] of the width, a shift ~ U[−t, t] of the height, a factor
    ~ U[1 − s, 1 + s] and a horizontal shear ~ U[−h, h]. It is resampled once, bilinearly. Shifts are not rounded to
    whole pixels.

    Args:
        degrees: hyperparameter for the largest angle d in degrees, or a constant. None means no rotation.
        translate: the same for the largest shift t, as a share of the width and of the height.
        scale: the same for the largest change of scale s, at most 0.99.
        shear: the same for the largest shear h in degrees, at most 89.
        fill: value of pixels outside the image.

    Raises:
        TypeError: if a strength is neither a name nor a number.
        ValueError: if all strengths are None, or a strength is out of range.
    """

    _MOST: ClassVar[dict[str, float]] = {"degrees": math.inf, "translate": math.inf, "scale": 0.99, "shear": 89.0}

    def __init__(
        self,
        degrees: Strength | None = None,
        translate: Strength | None = None,
        scale: Strength | None = None,
        shear: Strength | None = None,
        fill: float = 0.0,
    ) -> None:
        given = {"degrees": degrees, "translate": translate, "scale": scale, "shear": shear}
        self.strengths: dict[str, Strength] = {what: s for what, s in given.items() if s is not None}
        if not self.strengths:
            raise ValueError(f"`RandomAffine` needs at least one of {', '.join(given)}, got none")
        for what, strength in self.strengths.items():
            check_constant("RandomAffine", what, strength, self._MOST[what])
        self.names: tuple[str, ...] = names_of(*self.strengths.values())
        self.fill = fill

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless the domain of every strength lies between zero and its upper limit."""
        for what, strength in self.strengths.items():
            check_domain("RandomAffine", what, strength, space, self._MOST[what])

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Resampled images of the same shape.

        Args:
            x: images (B, C, H, W), floating point or uint8.
            pass_values: strengths and random generator of the pass.

        Raises:
            ValueError: if `x` is not a batch of images.
        """
        x = as_images(x, "RandomAffine")
        row = x.new_empty(len(x))
        draws = 2 * pass_values.rand(5, len(x), like=x) - 1  # (5, B) in [−1, 1)
        found = {what: strength_value(given, pass_values, like=row) for what, given in self.strengths.items()}
        none = torch.zeros_like(row)
        angle = found.get("degrees", none) * draws[0]
        shift = found.get("translate", none)
        across, down = shift * draws[1] * x.shape[-1], shift * draws[2] * x.shape[-2]
        factor = 1 + found.get("scale", none) * draws[3]
        shear = found.get("shear", none) * draws[4]
        return transform(x, angle, across, down, factor, shear, self.fill)


def transform(
    x: Tensor, angle: Tensor, across: Tensor, down: Tensor, factor: Tensor, shear: Tensor, fill: float = 0.0
) -> Tensor:
    """Rotate, shear, scale and shift images about their centres, with bilinear resampling.

    Output pixel p shows the input at M⁻¹(p − t) with M = factor·R(angle)·[[1, −tan shear], [0, 1]].

    Args:
        x: images (B, C, H, W).
        angle: clockwise rotation (B,) in degrees.
        across: shift to the right (B,) in pixels.
        down: shift down (B,) in pixels.
        factor: scale (B,), positive.
        shear: horizontal shear (B,) in degrees.
        fill: value of pixels outside the image.

    Returns:
        Images (B, C, H, W).
    """
    height, width = x.shape[-2:]
    turn, slope = torch.deg2rad(angle), torch.tan(torch.deg2rad(shear))
    sine, cosine = torch.sin(turn), torch.cos(turn)
    inverse = (cosine - slope * sine, sine + slope * cosine, -sine, cosine)  # inverse of M without its factor
    a, b, c, d = (part / factor for part in inverse)  # each (B,)
    # In `affine_grid` both axes run from −1 to 1 for any number of pixels.
    theta = torch.stack(
        [
            torch.stack([a, b * (height / width), -(a * across + b * down) * (2 / width)], -1),
            torch.stack([c * (width / height), d, -(c * across + d * down) * (2 / height)], -1),
        ],
        1,
    )  # (B, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    # `grid_sample` pads with zeros. Subtracting and adding `fill` turns these zeros into `fill`.
    moved = F.grid_sample(x - fill if fill else x, grid, padding_mode="zeros", align_corners=False)
    return moved + fill if fill else moved
