"""Noise on brightness, contrast, saturation and hue, with one strength and one draw per image.

torchvision's own take one strength for a whole batch; image by image they agree with these (see the tests).
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

    With u ~ U[0, 1] per image and the mean of an image's grey version written x̄, each step clamped to [0, 1]:

    - brightness s: x ← f·x, contrast s: x ← f·x + (1 − f)·x̄, saturation s: x ← f·x + (1 − f)·grey(x), each with its
      own factor f ~ U[max(0, 1 − s), 1 + s];
    - hue s: the hue turns by φ ~ U[−s, s] of the circle.

    They act in this order, not in a random one. A strength of zero leaves the image as it is, to the bit.

    Args:
        brightness: hyperparameter that holds the strength s ≥ 0, or a constant one; None leaves brightness alone.
        contrast: the same for contrast.
        saturation: the same for saturation, of colour images.
        hue: the same for hue, of colour images, in turns of the circle: 0 ≤ s ≤ 0.5.

    Raises:
        TypeError: if a strength is neither a name nor a number.
        ValueError: if all are None, or a strength is out of range.
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
        """Raise ValueError unless every strength is at least zero, and that of hue at most 0.5."""
        for what, strength in self.strengths.items():
            check_domain("ColorJitter", what, strength, space, self._MOST[what])

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Changed images of the same shape.

        Args:
            x: images (B, C, H, W) in [0, 1], or bytes; C is 3 for saturation and hue.
            pass_values: strengths and randomness of the pass.

        Raises:
            ValueError: if `x` is no batch of images, or saturation or hue gets images without colour.
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
                # There and back through the hue is off by a rounding: keep what does not turn.
                x = torch.where(turns == 0, x, turn_hue(x, turns))
                continue
            low = (1 - s).clamp_min(0)
            factor = low + (1 + s - low) * u  # (B, 1, 1, 1)
            x = {"brightness": scale_brightness, "contrast": scale_contrast, "saturation": scale_saturation}[what](
                x, factor
            )
        return x


def grey(x: Tensor) -> Tensor:
    """Luma of colour images (B, 3, H, W) → (B, 1, H, W), with torchvision's weights; grey ones as they are."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.split(1, 1)
    luma: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return luma


def scale_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """f·x, clamped to [0, 1]; f (B, 1, 1, 1)."""
    return (factor * x).clamp(0, 1)


def scale_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Distance from the image's mean grey times f, clamped to [0, 1]; f (B, 1, 1, 1)."""
    return (factor * x + (1 - factor) * grey(x).mean((1, 2, 3), keepdim=True)).clamp(0, 1)


def scale_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Distance from each pixel's grey times f, clamped to [0, 1]; f (B, 1, 1, 1)."""
    return (factor * x + (1 - factor) * grey(x)).clamp(0, 1)


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Colour images with each pixel's hue turned, its value and chroma kept.

    With hue H in sixths of the circle, value V and chroma C: channel n has V − C·clamp(min(k, 4 − k), 0, 1) at
    k = (o + H) mod 6, o = 5, 3, 1 for red, green, blue.

    Args:
        x: images (B, 3, H, W) in [0, 1].
        turns: shift (B, 1, 1, 1) in turns of the circle.
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
    # `arange` is made on the device; a list would be copied there from the host at every call.
    offset = torch.arange(5, 0, -2, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    k = (offset + hue + 6 * turns) % 6  # (B, 3, H, W)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
