"""Parametric rectifiers: the slope of negative inputs changes, one for all channels or one per channel."""

from torch import Tensor, nn

from ray_deltastn.response.kinds.base import LayerKind, on_channels

#: Slope that `nn.PReLU` starts with.
SLOPE = 0.25


def apply(layer: nn.PReLU, x: Tensor, weight: Tensor | None) -> Tensor:
    """The part of the output that depends on the slope a: a · min(x, 0)."""
    negative = x.clamp(max=0)
    return negative if weight is None else negative * on_channels(layer, weight[None], x)


def initialise(layer: nn.PReLU, direction: Tensor, generator: object) -> None:
    """Fill W_resp with the slope that PyTorch starts with."""
    direction.fill_(SLOPE)


PRELU = LayerKind(types=(nn.PReLU,), apply=apply, place=on_channels, initialise=initialise, rows="element")
