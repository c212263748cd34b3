"""The structured response Θ of a network, attached to an unmodified module.

| symbol         | code         | shape            | meaning                                                   |
|----------------|--------------|------------------|-----------------------------------------------------------|
| δ              | `delta`      | (B or 1, h)      | displacement of the hyperparameters, one row per example  |
| U, V           | `U`          | (K, h)           | the rows of every U and V of (3.14), in one matrix        |
| W_resp, b_resp | `directions` | the parameters'  | directions in which the rows move                         |
| Uδ, Vδ         | `row_change` | (B or 1, K)      | one product for the whole network, then split per layer   |
| Θδ             |              |                  | (Uδ) ⊙_row W_resp per parameter, never computed densely   |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from ray_deltastn.response.coverage import Owner, survey
from ray_deltastn.response.kinds.base import LayerKind, on_features
from ray_deltastn.response.layout import FRONT, Layout


@dataclass(frozen=True)
class Slot:
    """The rows of the matrix U that belong to one responding parameter: `start` to `stop`."""

    name: str
    parameter: nn.Parameter
    rows: str  # "output" | "feature" | "element", see LayerKind
    start: int
    stop: int

    def by_row(self, tensor: Tensor) -> Tensor:
        """View a tensor of the parameter's shape as (k, elements of a row)."""
        if self.rows == "element":
            return tensor.reshape(-1, 1)
        return (tensor if self.rows == "output" else tensor.transpose(0, 1)).reshape(self.stop - self.start, -1)

    def change(self, row_change: Tensor, direction: Tensor) -> Tensor:
        """Dense changes (Uδ) ⊙_row W_resp (…, *shape of the parameter) for row changes (…, K)."""
        part = row_change[..., self.start : self.stop]
        if self.rows == "element":
            changed: Tensor = part.unflatten(-1, direction.shape) * direction
            return changed
        if self.rows == "feature":
            return part.unsqueeze(-2) * direction
        return part.view(*part.shape, *(1,) * (direction.dim() - 1)) * direction


class _Pass:
    """State shared by the hooks of one pass; not part of the module, because setting a module's attributes is slow."""

    __slots__ = ("by_slot", "linearised", "primal", "tangent")

    def __init__(self) -> None:
        self.by_slot: dict[str, Tensor] = {}  # Uδ and Vδ by parameter; empty without displacement
        self.linearised = False
        self.primal: Tensor | None = None  # input of the current layer, unpacked by `_before`
        self.tangent: Tensor | None = None


class _Hook:
    """A hook that is inactive in a copied or saved model."""

    def __init__(self, method: Callable[..., Any] | None) -> None:
        self.method = method

    def __call__(self, *arguments: Any) -> Any:
        return None if self.method is None else self.method(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None,)


class Response(nn.Module):
    """Θ = (U, V, W_resp, b_resp), the structured response Jacobian of a network (Eqns. 3.14, E.1).

    The model keeps its class and its `state_dict`. Forward hooks add the change that a displacement δ causes to each
    layer's output. Without a displacement they do nothing. U and V start at zero, so the response starts at zero.

    Args:
        model: any module. Layers of the kinds in `response.kinds.KINDS` respond; `coverage` lists the parameters that
            do not.
        hyperparameters: number h of hyperparameters.
        generator: random generator on the CPU that initialises W_resp and b_resp.

    Raises:
        ValueError: if no parameter of the model can respond.
    """

    U: nn.Parameter

    def __init__(self, model: nn.Module, hyperparameters: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        owners, self.coverage = survey(model)
        if not owners:
            raise ValueError(
                f"`model` must have a trainable layer that can respond, got {type(model).__name__} without one: "
                + "; ".join(f"{name} is {why}" for name, why in self.coverage.uncovered.items())
            )
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.slots: list[Slot] = []
        self._layers: dict[nn.Module, dict[str, tuple[Slot, LayerKind]]] = {}
        self.directions = nn.ParameterDict()
        start = 0
        for parameter, users in owners.items():
            rows = _rows(users)
            stop = start + _row_count(parameter, rows)
            slot = Slot(names[parameter], parameter, rows, start, stop)
            self.slots.append(slot)
            self.directions[_key(slot.name)] = nn.Parameter(_direction(users[0], parameter, generator))
            for user in users:
                self._layers.setdefault(user.layer, {})[user.role] = (slot, user.kind)
            start = stop
        like = self.slots[0].parameter
        self.U = nn.Parameter(torch.zeros(start, hyperparameters, dtype=like.dtype, device=like.device))
        self._pass = _Pass()
        self._every = tuple(self.slots)
        self._sizes = [slot.stop - slot.start for slot in self.slots]
        self._layouts: dict[nn.Module, Layout] = {}
        #: Whether the model may call fused attention. Linearised passes then disable its fast kernels.
        self.attends = True
        #: Whether the model calls functions that a linearised pass must compute by elementary operations.
        self.elementary = False
        self._names = {layer: name for name, layer in model.named_modules()}
        self._model = [model]  # in a list, so that it is not a part of this module
        self._handles = [layer.register_forward_hook(_Hook(self._after), with_kwargs=True) for layer in self._layers]
        self._handles += [
            layer.register_forward_pre_hook(_Hook(self._before), with_kwargs=True)
            for layer, parts in self._layers.items()
            if any(kind.tangent is not None for _, kind in parts.values())
        ]

    def release(self) -> None:
        """Remove the hooks from the model. The model is then as it was before."""
        for handle in self._handles:
            handle.remove()

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self._model[0]

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers that use a responding parameter, by name."""
        return {self._names[layer]: layer for layer in self._layers}

    def users(self, slot: Slot) -> list[nn.Module]:
        """The layers that use the parameter of a slot."""
        return [layer for layer, parts in self._layers.items() if any(own is slot for own, _ in parts.values())]

    def kind(self, layer: nn.Module) -> LayerKind:
        """The kind of a responding layer."""
        return next(iter(self._layers[layer].values()))[1]

    def set_layout(self, layer: nn.Module, layout: Layout) -> None:
        """Tell where a layer's output has the batch; by default it is axis 0."""
        self._layouts[layer] = layout

    def layout(self, layer: nn.Module) -> Layout:
        """Where a layer's output has the batch."""
        return self._layouts.get(layer, FRONT)

    def drop(self, slot: Slot, reason: str) -> None:
        """Let a parameter respond no longer: not in its layers, in penalties, in `fold` or in an export.

        Its rows of U stay zero.

        Raises:
            ValueError: if no parameter is left.
        """
        self.slots.remove(slot)
        for layer in self.users(slot):
            self._layers[layer] = {role: part for role, part in self._layers[layer].items() if part[0] is not slot}
        if self.coverage.covered.pop(slot.name, None) is not None:
            self.coverage.uncovered[slot.name] = reason
        self.coverage.layers = sum(map(bool, self._layers.values()))
        if not self.slots:
            raise ValueError(f"`model` must have a layer that can respond, got none: '{slot.name}': {reason}")

    @property
    def parameter_names(self) -> list[str]:
        """Names of the model's parameters that respond."""
        return [slot.name for slot in self.slots]

    def direction(self, slot: Slot) -> Tensor:
        """W_resp or b_resp of a parameter."""
        direction: Tensor = self.directions[_key(slot.name)]
        return direction

    def row_change(self, delta: Tensor) -> Tensor:
        """Uδ and Vδ of the whole network: (B, K) for δ (B, h)."""
        return delta.to(self.U.dtype) @ self.U.T

    @contextmanager
    def displaced(self, delta: Tensor | None, linearised: bool = False) -> Iterator[None]:
        """Displace the weights by Θδ within the context.

        Args:
            delta: δ (B, h), or (1, h) for one displacement of the whole batch. None means no displacement.
            linearised: add the change to the tangent of forward-mode AD instead of to the output (Eqn. 3.13).
        """
        if delta is None:
            yield
            return
        with self.displaced_rows(self.row_change(delta), linearised):
            yield

    @contextmanager
    def displaced_rows(self, rows: Tensor, linearised: bool = False) -> Iterator[None]:
        """The same with Uδ and Vδ of the whole network, (B or 1, K)."""
        now = self._pass
        parts = rows.split(self._sizes, -1) if len(self._sizes) > 1 else (rows,)
        now.by_slot = dict(zip((slot.name for slot in self._every), parts, strict=True))
        now.linearised = linearised
        try:
            yield
        finally:
            now.by_slot, now.primal, now.tangent = {}, None, None

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The layer gets the primal only. Its kind computes the tangent.
        now = self._pass
        if not (now.by_slot and now.linearised and self._layers[layer]):
            return None
        now.primal, now.tangent = fwAD.unpack_dual(_input(args, kwargs))
        return (now.primal,), {}

    def _after(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        now = self._pass
        if not (now.by_slot and self._layers[layer]):
            return None
        kind = self.kind(layer)
        x, primal, tangent = _input(args, kwargs), output, None
        if now.linearised and kind.tangent is not None and now.primal is not None:
            # The layer got no tangent, so its output has none.
            x, x_tangent, now.primal, now.tangent = now.primal, now.tangent, None, None
        elif now.linearised:
            # The factor Uδ has no primal part, so the change depends on the primal x only and not on W_resp ẋ.
            x, x_tangent = fwAD.unpack_dual(x).primal, None
            primal, tangent = fwAD.unpack_dual(output)
        applied = kind.apply(layer, x, None) if kind.rows == "element" else None
        change = self._branch(layer, x, primal, applied).to(primal.dtype)
        if not now.linearised:
            return output + change
        if x_tangent is not None and kind.tangent is not None:
            tangent = kind.tangent(layer, x, x_tangent, applied)
        dual: Tensor = fwAD.make_dual(primal, change if tangent is None else tangent + change)
        return dual

    def _branch(self, layer: nn.Module, x: Tensor, output: Tensor, applied: Tensor | None) -> Tensor:
        """Change of a layer's output: place(Uδ) ⊙ apply(W_resp, x) + place((Vδ) ⊙ b_resp)."""
        terms: list[Tensor] = []
        layout = self.layout(layer) if len(next(iter(self._pass.by_slot.values()))) > 1 else FRONT
        if layout.axis:
            x, output = layout.to_front(x), layout.to_front(output)
            applied = None if applied is None else layout.to_front(applied)
        for role, (slot, kind) in self._layers[layer].items():
            rows, direction = layout.spread(self._pass.by_slot[slot.name], output.shape[0]), self.direction(slot)
            if rows.shape[0] not in (1, output.shape[0]):
                raise ValueError(
                    f"`output.shape[0]` must be the batch size for a response per example, got {output.shape[0]} for "
                    f"a batch of {rows.shape[0]} in layer '{self._names[layer]}'; if the rows of this layer depend on "
                    'the data, give all hyperparameters `per="batch"`'
                )
            if role == "bias":
                terms.append(kind.place(layer, rows * direction.flatten(), output).expand_as(output))
            elif slot.rows == "feature" and kind.rows == "output":
                # This linear layer is tied to an embedding. The rows of the table's response are the layer's inputs.
                terms.append(kind.apply(layer, x * on_features(layer, rows, x), direction))
            elif applied is not None:
                terms.append(applied * kind.place(layer, rows * direction.flatten(), output))
            else:
                out = kind.apply(layer, x, direction)
                terms.append(out * kind.place(layer, rows.to(out.dtype), out))
        return layout.back(terms[0] if len(terms) == 1 else torch.add(*terms))

    def fold(self, delta: Tensor) -> dict[str, Tensor]:
        """Dense parameters w₀ + Θδ by name, for one δ (h,)."""
        row_change = self.row_change(delta[None])[0]
        return {s.name: s.parameter + s.change(row_change, self.direction(s)) for s in self.slots}


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    return x


def _key(name: str) -> str:
    return name.replace(".", "/")


def _rows(users: list[Owner]) -> str:
    # A weight shared by an embedding and a linear layer has the embedding's structure in both layers.
    kinds = [user.kind.rows if user.role == "weight" else "element" for user in users]
    return "feature" if "feature" in kinds else kinds[0]


def _row_count(parameter: nn.Parameter, rows: str) -> int:
    return {"output": parameter.shape[0], "feature": parameter.shape[-1], "element": parameter.numel()}[rows]


def _direction(owner: Owner, parameter: nn.Parameter, generator: torch.Generator | None) -> Tensor:
    direction = torch.empty(parameter.shape, dtype=parameter.dtype)
    if owner.role == "weight":
        owner.kind.initialise(owner.layer, direction, generator)
    else:
        bound = 0.1 / max(1, parameter.numel()) ** 0.5
        direction.uniform_(-bound, bound, generator=generator)
    return torch.empty_like(parameter).copy_(direction)  # in the memory format of the parameter
