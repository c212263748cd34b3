"""The weights that a penalty reads: w₀ + Θδ, one set per example, computed densely only if they are few."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ray_deltastn.response.response import Response
from ray_deltastn.response.slots import Slot

#: Up to this number of elements the weights of all examples are computed densely, which takes fewer calls than the
#: closed form.
FORMED = 4096


class Weights:
    """The network's weights w₀ + Θδ under a displacement of the hyperparameters.

    Args:
        model: the network with the weights w₀.
        response: the response of the network, or None for the weights w₀.
        delta: displacement δ (B, h), or None for the weights w₀.
        parameters: w₀ by name, with a tied parameter under each of its names. The default is the model's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        response: Response | None = None,
        delta: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.parameters = named_parameters(model) if parameters is None else parameters
        self.response = response if delta is not None else None
        self.delta = delta

    def parameter(self, name: str) -> Tensor:
        """One parameter w₀ + Θδ by name, (B, *shape) under a displacement, else (*shape).

        Use it for penalties that do not depend on the norm only. It makes B copies, so use it for small parameters.

        Raises:
            ValueError: if the model has no parameter of this name.
        """
        if name not in self.parameters:
            raise ValueError(f"`name` must be a parameter of the model, got {name!r}")
        base = self.parameters[name]
        if self.response is None or self.delta is None:
            return base
        slot = next((slot for slot in self.response.slots if slot.parameter is base), None)
        if slot is None:
            return base.expand(self.delta.shape[0], *base.shape)
        rows = self.response.row_change(self.delta)
        direction = self.response.direction(slot)
        return base + slot.change(rows, direction)

    def squared_norm(self, biases: bool = True, layers: Collection[str] | None = None) -> Tensor:
        """‖w₀ + Θδ‖², in closed form.

        Row r of a parameter moves by a_r = (Uδ)_r along W_resp,r, so that
        ‖w₀ + Θδ‖² = ‖w₀‖² + Σ_r (2 a_r ⟨W₀,r, W_resp,r⟩ + a_r² ‖W_resp,r‖²).

        Args:
            biases: also count parameters with fewer than two axes (biases, normalisation).
            layers: names of the modules whose parameters count, as in `model.named_modules()`. None means all.

        Returns:
            (B,) under a displacement, else a scalar.

        Raises:
            ValueError: if there is no parameter to count, or a module has none.
        """
        chosen = _within(self.parameters, layers)
        once = {id(p): p for p in chosen.values() if biases or p.dim() > 1}
        parameters = list(once.values())
        if not parameters:
            raise ValueError("`model` must have a parameter with two or more axes for a penalty on weights, got none")
        if self.response is None or self.delta is None:
            return _squares(parameters)
        slots = [slot for slot in self.response.slots if id(slot.parameter) in once]
        if not slots:
            return _squares(parameters).expand(self.delta.shape[0])
        if self.delta.shape[0] * sum(slot.parameter.numel() for slot in slots) <= FORMED:
            return self._formed_norm(self.response, self.delta, slots, parameters)
        along = [slot.by_row(self.response.direction(slot)) for slot in slots]
        inner = _join([(slot.by_row(slot.parameter) * a).sum(-1) for slot, a in zip(slots, along, strict=True)])
        norm = _join([(a * a).sum(-1) for a in along])
        U: Tensor = self.response.U  # (rows, h)
        if sum(slot.stop - slot.start for slot in slots) < len(U):  # others do not respond, or are not counted
            U = _join([U[slot.start : slot.stop] for slot in slots])
        # The sum over rows is a quadratic form of δ with an h×h matrix, so that no tensor of size B × rows is needed.
        delta, transposed = self.delta.to(U.dtype), U.T
        along_delta = torch.addmm(transposed @ inner, delta, (transposed * norm) @ U, beta=2)
        return _squares(parameters) + (along_delta * delta).sum(-1)

    def _formed_norm(self, response: Response, delta: Tensor, slots: list[Slot], parameters: list[Tensor]) -> Tensor:
        rows = response.row_change(delta)
        moved = [slot.parameter + slot.change(rows, response.direction(slot)) for slot in slots]
        norm = _total([w.square().reshape(len(w), -1).sum(1) for w in moved])
        responding = {id(slot.parameter) for slot in slots}
        still = [p for p in parameters if id(p) not in responding]
        return norm + _squares(still) if still else norm


def named_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters of a model by name, with a tied parameter under each of its names."""
    return dict(model.named_parameters(remove_duplicate=False))


def _within(parameters: Mapping[str, Tensor], layers: Collection[str] | None) -> Mapping[str, Tensor]:
    """The parameters of some modules, by name."""
    if layers is None:
        return parameters
    found: dict[str, Tensor] = {}
    for layer in layers:
        own = {name: p for name, p in parameters.items() if name.startswith(f"{layer}.")}
        if not own:
            raise ValueError(f"`layers` must name modules of the model with parameters, got {layer!r}")
        found |= own
    return found


def _squares(parameters: list[Tensor]) -> Tensor:
    return _total([(p * p).sum() for p in parameters])


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _total(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
