"""Cutout: square holes in images, with a number and a size per example."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ray_deltastn.regularizers.base import Setting
from ray_deltastn.space import HyperSpace


class Cutout:
    """Set `holes` squares of `length` pixels, at random places, to zero (the mean, for normalised images).

    Centres are uniform over the image and the squares are clipped at its border.

    Args:
        holes: name of the hyperparameter with the number of holes; needs an upper bound.
        length: name of the hyperparameter with their side in pixels.
    """

    def __init__(self, holes: str, length: str) -> None:
        self.names: tuple[str, ...] = (holes, length)

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless the number of holes has an upper bound."""
        if math.isinf(space.hyperparameters[self.names[0]].bounds[1]):
            raise ValueError(f"`Cutout` needs an upper bound on the number of holes, got none for '{self.names[0]}'")

    def __call__(self, x: Tensor, setting: Setting) -> Tensor:
        """Images (B, …, H, W) with their holes, of the same shape.

        Raises:
            ValueError: if the images have fewer than three axes, or the number of holes has no upper bound.
        """
        if x.dim() < 3:
            raise ValueError(f"`Cutout` needs images (B, …, H, W), got a batch of shape {tuple(x.shape)}")
        batch, height, width = x.shape[0], x.shape[-2], x.shape[-1]
        self.check(setting.space)
        count = int(setting.space.hyperparameters[self.names[0]].bounds[1])
        ndim_like = x.new_empty(batch, 1)
        holes = setting.value(self.names[0], like=ndim_like)  # (B or 1, 1)
        length = setting.value(self.names[1], like=ndim_like)
        centres = setting.rand(2, batch, count, like=x)
        rows = self._inside(centres[0], length, height)  # (B, count, H)
        columns = self._inside(centres[1], length, width)  # (B, count, W)
        used = torch.arange(count, device=x.device) < holes  # (B or 1, count)
        hit = (rows & used[..., None]).unsqueeze(-1) & columns.unsqueeze(-2)  # (B, count, H, W)
        mask = hit.any(1).view(batch, *(1,) * (x.dim() - 3), height, width)
        return x.masked_fill(mask, 0.0)

    @staticmethod
    def _inside(centre: Tensor, length: Tensor, size: int) -> Tensor:
        """Which of `size` pixels lie in a span of `length` around each centre in [0, 1): (B, count, size)."""
        start = (centre * size).floor() - (length / 2).floor()
        pixel = torch.arange(size, device=centre.device)
        return (pixel >= start[..., None]) & (pixel < (start + length)[..., None])
