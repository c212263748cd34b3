"""Tune the dropout of a network that exists already, such as one of a library or a pretrained one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, NamedTuple

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ray_deltastn.domains import Bounded
from ray_deltastn.regularizers.dropout import ChannelDropout, Dropout
from ray_deltastn.regularizers.rates import Rate

#: PyTorch's layer → ours.
KINDS: dict[type[nn.Module], type[Dropout]] = {
    nn.Dropout: Dropout,
    nn.Dropout1d: ChannelDropout,
    nn.Dropout2d: ChannelDropout,
    nn.Dropout3d: ChannelDropout,
}
#: Smallest initial rate. A tuned rate can start on its bound, but a small one shows its effect sooner.
LEAST = 0.01


#: Layers that use their rate themselves, in a way that cannot have one value per example.
CLOSED = (nn.RNNBase, _DropoutNd)
#: Number of names in a message.
SHOWN = 3


class _Place(NamedTuple):
    """A rate of a model: that of a layer, or a number that is an attribute of a layer."""

    parent: nn.Module
    key: str
    name: str
    layer: nn.Module | None  # None for a number
    rate: float

    def named_by(self, attributes: Collection[str]) -> bool:
        """Whether it is a number that `attributes` can tune."""
        return self.layer is None and self.key in attributes and not isinstance(self.parent, CLOSED)


def tune_dropouts(
    model: nn.Module,
    groups: Mapping[str, str] | None = None,
    *,
    high: float = 0.95,
    per: Literal["example", "batch"] = "example",
    attributes: Collection[str] = (),
) -> dict[str, Bounded]:
    """Replace the dropout layers of a model by tuned ones, in place.

    A layer may be called, or its `p` may be given to `F.dropout` or to `F.scaled_dot_product_attention`. Rates that are
    not layers stay as they are, and a warning names them: the `dropout` of recurrent layers and of
    `nn.MultiheadAttention`, and other numbers that a model gives to `F.dropout` or to attention. `attributes` tunes
    such numbers, too, but not those of recurrent layers.

    Args:
        model: any network with `nn.Dropout`, `nn.Dropout1d`, `nn.Dropout2d` or `nn.Dropout3d`.
        groups: name of a hyperparameter → regular expression. Layers whose name in the model has a match share this
            rate; the first expression that matches counts, and layers without a match stay as they are. None gives all
            layers one rate, `dropout`.
        high: largest rate.
        per: whether each example of a batch has a perturbation of its own (`example`), or all have the same (`batch`).
        attributes: names of attributes whose number is a rate that the model gives to `F.dropout` or to
            `F.scaled_dot_product_attention`, such as `attention_dropout` of Llama or `dropout` of
            `nn.MultiheadAttention`. Their names for `groups` are those of layers, such as
            `model.layers.0.self_attn.attention_dropout`.

    Returns:
        The hyperparameters by name, for `HyperSpace(**found)`. Each starts at the mean rate of its layers, at least at
        `LEAST`.

    Raises:
        ValueError: if an expression matches no dropout layer, or `high` is not in (0, 1]. The model is then unchanged.

    Examples:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 8), nn.Dropout(0.4), nn.Linear(8, 3))
        >>> found = rd.tune_dropouts(net, {"first": r"^1$", "rest": ""})
        >>> {name: one.initial for name, one in found.items()}
        {'first': 0.2, 'rest': 0.4}
    """
    if not 0 < high <= 1:
        raise ValueError(f"`0 < high <= 1` must hold for rates of dropout, got high={high}")
    chosen = {"dropout": ""} if groups is None else dict(groups)
    places = [place for place in _places(model) if place.layer is not None or place.named_by(attributes)]
    numbers = [place for place in _places(model) if place.layer is None and not place.named_by(attributes)]
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    shared: dict[nn.Module, Dropout] = {}  # a layer that the model uses in two places stays one layer
    tuned: list[tuple[_Place, Dropout]] = []
    for place in places:
        name = next((name for name, pattern in chosen.items() if re.search(pattern, place.name)), None)
        if name is None:
            continue
        layer = place.layer or place.parent
        ours = shared.get(layer) if place.layer else None
        if ours is None:
            ours = KINDS.get(type(layer), Dropout)(name).train(layer.training)
            rates[name].append(place.rate)
            if place.layer:
                shared[place.layer] = ours
        tuned.append((place, ours))
    for name, own in rates.items():
        if not own:
            raise ValueError(
                f"`groups[{name!r}]` must match a dropout layer that no earlier expression matches, got "
                f"{chosen[name]!r}; the dropout layers are: {', '.join(place.name for place in places) or 'none'}"
                + (f"; `attributes` can name rates that are no layers: {_shown(numbers)}" if numbers else "")
            )
    for place, ours in tuned:
        if place.layer is None:
            place.parent.add_module(f"tuned_{place.key}", ours)
            setattr(place.parent, place.key, Rate(ours))
        else:
            place.parent._modules[place.key] = ours
    _warn_of([place for place in numbers if place.rate])
    return {
        name: Bounded(min(high, max(LEAST, round(sum(own) / len(own), 12))), low=0.0, high=high, per=per)
        for name, own in rates.items()
    }


def _places(model: nn.Module) -> Iterator[_Place]:
    """The rates of a model: layers of `KINDS`, and numbers in [0, 1] with `drop` in the name of the attribute."""
    for prefix, parent in model.named_modules():
        start = f"{prefix}." if prefix else ""
        for key, child in parent._modules.items():
            if child is not None and type(child) in KINDS:
                yield _Place(parent, key, start + key, child, float(child.p))
        for key, value in vars(parent).items():
            kind = type(parent).__name__.lower()
            rate = "drop" in key.lower() or (key == "p" and ("drop" in kind or "stochastic" in kind))
            single = isinstance(parent, nn.RNNBase) and parent.num_layers == 1  # it has no dropout
            if rate and type(value) is float and 0 <= value <= 1 and type(parent) not in KINDS and not single:
                yield _Place(parent, key, start + key, None, value)


def _warn_of(left: list[_Place]) -> None:
    """Name the rates that are not layers, and what helps."""
    if not left:
        return
    closed = sorted({type(place.parent).__name__ for place in left if isinstance(place.parent, CLOSED)})
    keys = sorted({place.key for place in left if not isinstance(place.parent, CLOSED)})
    helps = [f"those of {' and '.join(closed)} cannot be tuned, and 0 turns them off"] if closed else []
    helps += [f"`attributes={keys}` tunes those that go to `F.dropout` or to fused attention"] if keys else []
    warnings.warn(
        f"numbers that seem to be rates of dropout stay as they are: {_shown(left)}; {'; '.join(helps)}", stacklevel=3
    )


def _shown(places: list[_Place]) -> str:
    names = [f"'{place.name}' ({place.rate:g})" for place in places]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
