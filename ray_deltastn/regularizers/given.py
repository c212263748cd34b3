"""Tune the dropout of a network that exists already, such as one of a library or a pretrained one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import nn

from ray_deltastn.domains import Bounded
from ray_deltastn.regularizers.dropout import ChannelDropout, Dropout

#: PyTorch's layer → ours.
KINDS: dict[type[nn.Module], type[Dropout]] = {
    nn.Dropout: Dropout,
    nn.Dropout1d: ChannelDropout,
    nn.Dropout2d: ChannelDropout,
    nn.Dropout3d: ChannelDropout,
}
#: Smallest initial rate. A tuned rate can start on its bound, but a small one shows its effect sooner.
LEAST = 0.01


def tune_dropouts(
    model: nn.Module,
    groups: Mapping[str, str] | None = None,
    *,
    high: float = 0.95,
    per: Literal["example", "batch"] = "example",
) -> dict[str, Bounded]:
    """Replace the dropout layers of a model by tuned ones, in place.

    Rates that are not layers stay as they are: the `dropout` of `nn.MultiheadAttention` and of recurrent layers, and
    calls of `F.dropout`.

    Args:
        model: any network with `nn.Dropout`, `nn.Dropout1d`, `nn.Dropout2d` or `nn.Dropout3d`.
        groups: name of a hyperparameter → regular expression. Layers whose name in the model has a match share this
            rate; the first expression that matches counts, and layers without a match stay as they are. None gives all
            layers one rate, `dropout`.
        high: largest rate.
        per: whether each example of a batch has a perturbation of its own (`example`), or all have the same (`batch`).

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
    chosen = {"dropout": ""} if groups is None else dict(groups)
    places = [
        (parent, key, f"{prefix}.{key}" if prefix else key, child)
        for prefix, parent in model.named_modules()
        for key, child in parent._modules.items()
        if type(child) in KINDS
    ]
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    tuned: dict[nn.Module, Dropout] = {}  # a layer that the model uses in two places stays one layer
    for _, _, where, layer in places:
        name = next((name for name, pattern in chosen.items() if re.search(pattern, where)), None)
        if name is not None and layer is not None and layer not in tuned:
            rates[name].append(float(layer.p))
            tuned[layer] = KINDS[type(layer)](name).train(layer.training)
    for name, own in rates.items():
        if not own:
            known = ", ".join(where for _, _, where, _ in places) or "none"
            raise ValueError(
                f"`groups[{name!r}]` must match a dropout layer that no earlier expression matches, got "
                f"{chosen[name]!r}; the dropout layers are: {known}"
            )
    found = {
        name: Bounded(min(high, max(LEAST, round(sum(own) / len(own), 12))), low=0.0, high=high, per=per)
        for name, own in rates.items()
    }
    if not 0 < high <= 1:
        raise ValueError(f"`0 < high <= 1` must hold for rates of dropout, got high={high}")
    for parent, key, _, layer in places:
        if layer in tuned:
            parent._modules[key] = tuned[layer]
    return found
