"""Penalties on the weights w₀ + Θδ, with one set of weights and one strength per example."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ray_deltastn.response import Weights


class L2:
    """Weight decay: ½·s(λ)·‖w‖² at w = w₀ + Θδ.

    Its gradient is s(λ)·w. This is the `weight_decay` of `torch.optim.SGD` and `torch.optim.Adam`, so that constants
    found here can be used there. It is not the decay of `torch.optim.AdamW`, which does not pass through Adam's
    normalisation: a network that was tuned with AdamW must be trained again with this penalty in the loss.

    Args:
        name: hyperparameter for the strength s(λ).
        biases: also penalise parameters with fewer than two axes (biases, normalisation), as PyTorch does.
        divide_by: divisor of the penalty. In Eqn. H.1 it is the size of the training set.
        layers: names of the modules whose parameters are penalised, as in `model.named_modules()`. None means all
            parameters. With one penalty per layer each layer has its own strength.

    Raises:
        ValueError: if `divide_by` is not positive. The first pass raises it if a module does not exist or has no
            parameters.
        TypeError: if `layers` is one string.
    """

    def __init__(
        self, name: str, biases: bool = True, divide_by: float = 1.0, layers: Collection[str] | None = None
    ) -> None:
        if isinstance(layers, str):
            raise TypeError(f"`layers` must be several names, such as [{layers!r}], got {layers!r}")
        if not divide_by > 0:
            raise ValueError(f"`divide_by > 0` must hold, got divide_by={divide_by} for '{name}'")
        self.names: tuple[str, ...] = (name,)
        self.biases = biases
        self.divide_by = divide_by
        self.layers = None if layers is None else tuple(layers)

    def __call__(self, values: Mapping[str, Tensor], weights: Weights) -> Tensor:
        """The penalty, (B,) under a displacement, else a scalar."""
        norm = weights.squared_norm(self.biases, self.layers)
        return (values[self.names[0]] * (0.5 / self.divide_by)).to(norm.dtype) * norm
