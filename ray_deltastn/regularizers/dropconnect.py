"""DropConnect: dropout of weights, with one mask for a minibatch (Wan et al. 2013; Merity, Keskar and Socher 2017)."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ray_deltastn.regularizers.base import Regularizer
from ray_deltastn.regularizers.dropout import check_rate
from ray_deltastn.response.factors import scaled_call
from ray_deltastn.space import HyperSpace

#: Layers whose weights can have factors in displaced passes.
KINDS = (nn.RNNBase, nn.RNNCellBase, nn.Linear)
#: The start of the names of hidden-to-hidden weights.
HIDDEN = "weight_hh"


class DropConnect(Regularizer):
    """Set each weight of a layer to zero with probability p, and divide the others by 1 − p.

    W ⊙ M / (1 − p) with M ~ Bernoulli(1 − p), one mask for all sequences, steps and calls of a pass. In a displaced
    pass the same mask acts on the displaced weight, M / (1 − p) ⊙ (w₀ + Θδ). In evaluation mode there is no mask.
    Penalties get the weights without the mask.

    The layer stays an ordinary layer inside this one, and its weights have the names `layer.*`.

    Args:
        name: hyperparameter for p, with a domain inside [0, 1]. It must have `per="batch"`: a mask for each sequence
            would need a weight matrix for each sequence.
        layer: an LSTM, GRU or RNN, one of their cells, or a linear layer.
        weights: names of the parameters of the layer that are masked. None means the hidden-to-hidden weights, of all
            layers and directions.

    Raises:
        TypeError: if `layer` is of another kind, or `weights` is one string.
        ValueError: if `weights` has a name that is no weight of the layer, or no name; from a `Task`, if the
            hyperparameter has `per="example"` or its domain is not inside [0, 1].

    Examples:
        >>> layer = rd.DropConnect("dropconnect", nn.LSTM(8, 8, num_layers=2))
        >>> layer.weights
        ('weight_hh_l0', 'weight_hh_l1')
    """

    def __init__(self, name: str, layer: nn.Module, weights: Collection[str] | None = None) -> None:
        super().__init__(name)
        if not isinstance(layer, KINDS):
            raise TypeError(
                f"`layer` must be a recurrent layer, a recurrent cell or nn.Linear, got {type(layer).__name__}"
            )
        if isinstance(weights, str):
            raise TypeError(f"`weights` must be several names, such as [{weights!r}], got {weights!r}")
        known = [own for own, p in layer.named_parameters(recurse=False) if p.dim() > 1]
        self.weights = tuple(own for own in known if own.startswith(HIDDEN)) if weights is None else tuple(weights)
        if not self.weights or not set(self.weights) <= set(known):
            its = f"it has {', '.join(known)}" if known else "it has none of its own, as after `weight_norm`"
            raise ValueError(
                f"`weights` must name weights of {type(layer).__name__}, got {', '.join(self.weights) or 'none'}; {its}"
            )
        self.layer = layer

    def check(self, space: HyperSpace) -> None:
        """Raise ValueError unless the rate is per batch and its domain lies in [0, 1]."""
        check_rate(self, space)
        if space.hyperparameters[self.names[0]].per != "batch":
            raise ValueError(
                f'`per="batch"` must hold for the rate of DropConnect, got per="example" for \'{self.names[0]}\'; a '
                "mask for each example would need a weight matrix for each example"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns, with masked weights in training mode."""
        if not self.training:
            return self.layer(*args, **kwargs)
        once = self.pass_values.once
        factors = {own: once((self, own), partial(self._factor, own)) for own in self.weights}
        return scaled_call(self.layer, factors, *args, **kwargs)

    def _factor(self, own: str) -> Tensor:
        """M / (1 − p) for one weight."""
        weight = getattr(self.layer, own)
        p = self.pass_values.value(self.names[0], like=weight)
        keep = self.pass_values.rand(*weight.shape, like=weight) >= p
        return (keep / (1 - p).clamp_min(torch.finfo(weight.dtype).eps)).to(weight.dtype)
