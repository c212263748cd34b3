"""Helpers of the augmentations: images in floating point, and strengths given by name or as a constant."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ray_deltastn.regularizers.base import PassValues
from ray_deltastn.space import HyperSpace

#: The name of the hyperparameter for a strength, or a constant strength.
Strength = str | float


def as_float(x: Tensor) -> Tensor:
    """Inputs in floating point. uint8 is divided by 255, which gives [0, 1]; floating point does not change.

    Raises:
        ValueError: if `x` has another type.
    """
    if x.dtype == torch.uint8:
        return x.to(torch.get_default_dtype()) / 255
    if not x.is_floating_point():
        raise ValueError(f"`x.dtype` must be floating point or uint8, got {x.dtype}")
    return x


def as_images(x: Tensor, who: str) -> Tensor:
    """Images (B, C, H, W) in floating point; see `as_float`.

    Args:
        x: images.
        who: name of the augmentation, for the message.

    Raises:
        ValueError: if `x` does not have four axes, or its type is neither floating point nor uint8.
    """
    if x.dim() != 4:
        raise ValueError(f"`{who}` needs images (B, C, H, W), got a batch of shape {tuple(x.shape)}")
    return as_float(x)


def names_of(*strengths: Strength | None) -> tuple[str, ...]:
    """The strengths that are names of hyperparameters."""
    return tuple(s for s in strengths if isinstance(s, str))


def strength_value(strength: Strength, pass_values: PassValues, like: Tensor) -> Tensor:
    """Value of a strength in the current pass, (B or 1, 1, …), which broadcasts over `like` (B, …)."""
    if isinstance(strength, str):
        return pass_values.value(strength, like=like)
    return like.new_full((1,) * like.dim(), strength)


def check_constant(who: str, what: str, strength: Strength | None, most: float = math.inf) -> None:
    """Check a strength given by the user: a name, None, or a number in [0, most].

    Args:
        who: name of the augmentation, for the message.
        what: name of the strength, for the message.
        strength: the strength.
        most: upper limit.

    Raises:
        TypeError: if the strength is not a name, None or a number.
        ValueError: if the number is out of range or not finite.
    """
    if strength is None or isinstance(strength, str):
        return
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise TypeError(f"`{what}` of {who} must be the name of a hyperparameter or a number, got {strength!r}")
    if not (0 <= strength <= most and math.isfinite(strength)):
        raise ValueError(f"`{_rule(what, most)}` must hold for {who}, got {what}={strength}")


def check_domain(who: str, what: str, strength: Strength | None, space: HyperSpace, most: float = math.inf) -> None:
    """Raise ValueError if a strength is given by name and its domain does not lie in [0, most]."""
    if not isinstance(strength, str):
        return
    low, high = space.hyperparameters[strength].bounds
    if not 0 <= low < high <= most:
        raise ValueError(
            f"`{_rule(what, most)}` must hold for {who} in the whole domain, got low={low}, high={high} for "
            f"'{strength}'"
        )


def _rule(what: str, most: float) -> str:
    return f"0 <= {what}" if math.isinf(most) else f"0 <= {what} <= {most:g}"
