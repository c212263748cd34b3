"""Random changes of brightness, contrast, saturation and hue, with one strength and one draw per image.

torchvision's version takes one strength for the whole batch. On a single image both give the same result
(`tests/regularizers/test_augmentation.py`).
"""

from __future__ import annotations

import math
from typing import ClassVar

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


class ColorJitter:
    """Change brightness, contrast, saturation and hue of each image at random, like torchvision's `ColorJitter`.

    The steps run in this order, not in a random order. Each step draws one number per image, and its result is clamped
    to [0, 1]:

    - brightness s: x ← f·x,
    - contrast s: x ← f·x + (1 − f)·x̄, where x̄ is the mean of the grey image,
    - saturation s: x ← f·x + (1 − f)·grey(x),
    - hue s: the hue rotates by φ ~ U[−s, s] turns.

    Each of the first three steps draws its factor f ~ U[max(0, 1 − s), 1 + s]. A strength of zero returns the same
    image, bit for bit.

    Args:
        brightness: hyperparameter for the strength s ≥ 0, or a constant. None means no change of brightness.
        contrast: the same for contrast.
        saturation: the same for saturation; it needs colour images.
        hue: the same for hue, in turns, 0 ≤ s ≤ 0.5; it needs colour images.

    Raises:
        TypeError: if a strength is neither a name nor a number.
        ValueError: if all strengths are None, or a strength is out of range.
    """

    _MOST: ClassVar[dict[str, float]] = {
        "brightness": math.inf,
        "contrast": math.inf,
        "saturation": math.inf,
        "hue": 0.5,
    }

    def __init__(
        self,
        brightness: Strength | None = None,
        contrast: Strength | None = None,
        saturation: Strength | None = None,
        hue: Strength | None = None,
    ) -> None:
        given = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        self.strengths: dict[str, Strength] = {what: s for what, s in given.items() if s is not None}
        if not self.strengths:
            raise ValueError(f"`ColorJitter` needs at least one of {', '.join(given)}, got none")
        for what, strength in self.strengths.items():
            check_constant("ColorJitter", what, strength, self._MOST[what])
        self.names: tuple[str, ...] = names_of(*self.strengths.values())

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless every strength is at least zero and the strength of hue is at most 0.5."""
        for what, strength in self.strengths.items():
            check_domain("ColorJitter", what, strength, space, self._MOST[what])

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Changed images of the same shape.

        Args:
            x: images (B, C, H, W) in [0, 1], or uint8. C must be 3 for saturation and hue.
            pass_values: strengths and random generator of the pass.

        Raises:
            ValueError: if `x` is not a batch of images, or if saturation or hue gets images without three channels.
        """
        x = as_images(x, "ColorJitter")
        coloured = [what for what in ("saturation", "hue") if what in self.strengths]
        if coloured and x.shape[1] != 3:
            raise ValueError(f"`x.shape[1] == 3` must hold for {coloured[0]}, got images of shape {tuple(x.shape[1:])}")
        draws = pass_values.rand(len(self.strengths), len(x), 1, 1, 1, like=x)
        for (what, given), u in zip(self.strengths.items(), draws, strict=True):
            s = strength_value(given, pass_values, like=x)  # (B or 1, 1, 1, 1)
            if what == "hue":
                turns = s * (2 * u - 1)  # (B, 1, 1, 1)
                # Computing the hue and inverting it makes rounding errors, so images with zero rotation are kept.
                x = torch.where(turns == 0, x, turn_hue(x, turns))
                continue
            low = (1 - s).clamp_min(0)
            factor = low + (1 + s - low) * u  # (B, 1, 1, 1)
            x = {"brightness": scale_brightness, "contrast": scale_contrast, "saturation": scale_saturation}[what](
                x, factor
            )
        return x


def grey(x: Tensor) -> Tensor:
    """Luma (B, 1, H, W) of colour images (B, 3, H, W), with torchvision's weights; other images do not change."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.split(1, 1)
    luma: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return luma


def scale_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """f·x, clamped to [0, 1], for factors f (B, 1, 1, 1)."""
    return (factor * x).clamp(0, 1)


def scale_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """f·x + (1 − f)·x̄, clamped to [0, 1], for the mean x̄ of each grey image and factors f (B, 1, 1, 1)."""
    return (factor * x + (1 - factor) * grey(x).mean((1, 2, 3), keepdim=True)).clamp(0, 1)


def scale_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """f·x + (1 − f)·grey(x), clamped to [0, 1], for factors f (B, 1, 1, 1)."""
    return (factor * x + (1 - factor) * grey(x)).clamp(0, 1)


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of each pixel, and keep its value and its chroma.

    A pixel has the hue H in sixths of a turn, the value V and the chroma C. Its channel is
    V − C·clamp(min(k, 4 − k), 0, 1) with k = (o + H) mod 6, and o = 5, 3, 1 for red, green, blue.

    Args:
        x: images (B, 3, H, W) in [0, 1].
        turns: rotation (B, 1, 1, 1) in turns.

    Returns:
        Images (B, 3, H, W).
    """
    red, green, blue = x.split(1, 1)  # (B, 1, H, W)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    divisor = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # `arange` runs on the device. A list would be copied from the host in every call.
    offset = torch.arange(5, 0, -2, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    k = (offset + hue + 6 * turns) % 6  # (B, 3, H, W)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
