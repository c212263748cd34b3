"""Penalties on activations, with one strength per example (Merity, McCann and Socher 2017)."""

from __future__ import annotations

from torch import Tensor

from ray_deltastn.regularizers.base import Regularizer
from ray_deltastn.space import HyperSpace


class ActivationPenalty(Regularizer):
    """Add α · mean(h²) to the training loss, where h is what passes through the layer, which does not change it.

    The mean is over all entries of an example. In a linearised pass h is the linearised activation. In evaluation mode
    there is no penalty. Inputs (B, …) may have any shape.

    Args:
        name: hyperparameter for α, with a domain at or above zero.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless the domain of the strength is at or above zero."""
        low = space.hyperparameters[self.names[0]].bounds[0]
        if not low >= 0:
            raise ValueError(
                f"`low >= 0` must hold for the strength of {type(self).__name__}, got low={low} for '{self.names[0]}'"
            )

    def forward(self, x: Tensor) -> Tensor:
        """`x`; the pass that computes the training loss takes a note of it."""
        if self.training and self.pass_values.activations is not None:
            self.pass_values.activations.append((self.term, x))
        return x

    def term(self, x: Tensor) -> Tensor:
        """The penalty of the examples that `x` belongs to, (rows,) or ()."""
        strength = self.pass_values.value(self.names[0], like=x, layout=self.layout)
        squares = self.layout.to_front(self.measured(x)).flatten(1).square().mean(1)
        return strength.reshape(-1) * squares

    def measured(self, x: Tensor) -> Tensor:
        """What is squared."""
        return x


class TemporalActivationPenalty(ActivationPenalty):
    """Add β · mean((h_{t+1} − h_t)²) to the training loss, for sequences (B, T, …), or (T, B, …) with steps first.

    A sequence with one step has no penalty. Otherwise it is like `ActivationPenalty`.

    Args:
        name: hyperparameter for β, with a domain at or above zero.
    """

    def measured(self, x: Tensor) -> Tensor:
        """Differences of neighbouring steps."""
        if x.dim() < 2 or x.shape[1 - self.layout.axis] < 2:
            return 0 * x
        return x.diff(dim=1 - self.layout.axis)
