"""Cutout: square holes in images, with one number of holes and one size per example."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ray_deltastn.regularizers.base import PassValues
from ray_deltastn.regularizers.strength import as_float
from ray_deltastn.space import HyperSpace


class Cutout:
    """Fill `holes` squares with a side of `length` pixels at random places.

    The centres are uniform over the image. The squares are clipped at its border.

    Args:
        holes: hyperparameter for the number of holes. Its domain needs an upper bound.
        length: hyperparameter for the side of the squares in pixels.
        fill: value of the holes, one for all channels or one per channel. Give the mean of the data; it is zero for
            normalised images.
    """

    def __init__(self, holes: str, length: str, fill: float | Sequence[float] = 0.0) -> None:
        self.names: tuple[str, ...] = (holes, length)
        self.fill: float | tuple[float, ...] = tuple(fill) if isinstance(fill, Sequence) else fill

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless the domain of the number of holes has an upper bound."""
        if math.isinf(space.hyperparameters[self.names[0]].bounds[1]):
            raise ValueError(f"`Cutout` needs an upper bound on the number of holes, got none for '{self.names[0]}'")

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Images (B, …, H, W) with holes, of the same shape; uint8 images become floating point in [0, 1].

        Raises:
            ValueError: if the images have fewer than three axes, if `fill` does not have one value per channel, or if
                the number of holes has no upper bound.
        """
        if x.dim() < 3:
            raise ValueError(f"`Cutout` needs images (B, …, H, W), got a batch of shape {tuple(x.shape)}")
        x = as_float(x)
        batch, height, width = x.shape[0], x.shape[-2], x.shape[-1]
        self.check(pass_values.space)
        count = int(pass_values.space.hyperparameters[self.names[0]].bounds[1])
        ndim_like = x.new_empty(batch, 1)
        holes = pass_values.value(self.names[0], like=ndim_like)  # (B or 1, 1)
        length = pass_values.value(self.names[1], like=ndim_like)
        centres = pass_values.rand(2, batch, count, like=x)
        rows = self._inside(centres[0], length, height)  # (B, count, H)
        columns = self._inside(centres[1], length, width)  # (B, count, W)
        used = torch.arange(count, device=x.device) < holes  # (B or 1, count)
        hit = (rows & used[..., None]).unsqueeze(-1) & columns.unsqueeze(-2)  # (B, count, H, W)
        mask = hit.any(1).view(batch, *(1,) * (x.dim() - 3), height, width)
        return torch.where(mask, self._fill(x), x)

    def _fill(self, x: Tensor) -> Tensor | float:
        if not isinstance(self.fill, tuple):
            return self.fill
        if x.dim() < 4 or x.shape[-3] != len(self.fill):
            raise ValueError(
                f"`fill` must have one value for each channel, got {len(self.fill)} for images of shape "
                f"{tuple(x.shape[1:])}"
            )
        # `new_full` runs on the device. A tensor made of the list would be copied from the host in every call.
        return torch.stack([x.new_full((1, 1), value) for value in self.fill])  # (C, 1, 1)

    @staticmethod
    def _inside(centre: Tensor, length: Tensor, size: int) -> Tensor:
        """Whether each of `size` pixels lies in the `length` pixels around each centre in [0, 1), (B, count, size)."""
        start = (centre * size).floor() - (length / 2).floor()
        pixel = torch.arange(size, device=centre.device)
        return (pixel >= start[..., None]) & (pixel < (start + length)[..., None])
