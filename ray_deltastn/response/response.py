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

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from ray_deltastn.response.coverage import Owner, survey
from ray_deltastn.response.functions import Functions, Use
from ray_deltastn.response.inputs import alike, first_of, others_of
from ray_deltastn.response.kinds.base import LayerKind, on_features
from ray_deltastn.response.layout import FRONT, Layout
from ray_deltastn.response.passes import LEAF, SEQUENCE, ModulePass, Moved, Part, pass_of
from ray_deltastn.response.passes.leaf import parametrisations
from ray_deltastn.response.replaced import Replaced, Replacement, inside
from ray_deltastn.response.trees import mapped

#: A direction without a rule has the size of its parameter, but at least this.
SMALLEST = 0.02


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
        return self.dense(row_change[..., self.start : self.stop], direction)

    def dense(self, part: Tensor, direction: Tensor) -> Tensor:
        """The same for the row changes of this parameter, (…, k)."""
        if self.rows == "element":
            changed: Tensor = part.reshape((*part.shape[:-1], *direction.shape)) * direction
            return changed
        axis = 0 if self.rows == "output" else 1
        return part.view(*part.shape[:-1], *(1,) * axis, -1, *(1,) * (direction.dim() - 1 - axis)) * direction


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
        model: any module. Layers of the kinds in `response.kinds.KINDS` respond through hooks, attention, recurrent
            and all other layers with weights through `response.passes`. A parameter of a module with submodules is
            replaced in it. `coverage` lists the parameters that do not respond.
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
        self._passes: dict[nn.Module, tuple[ModulePass, dict[str, Slot]]] = {}
        #: Modules with statistics of weights, such as spectral norms: only plain passes in training mode change them.
        self._statistics = [m for layer in model.modules() for m in parametrisations(layer)]
        #: The parameters that are replaced in their modules.
        self.replaced = Replaced(model)
        for parameter, users in owners.items():
            rows = _rows(users)
            stop = start + _row_count(parameter, rows)
            slot = Slot(names[parameter], parameter, rows, start, stop)
            self.slots.append(slot)
            self.directions[_key(slot.name)] = nn.Parameter(_direction(users[0], parameter, generator))
            for user in users:
                self._use(user, slot)
            start = stop
        #: Recurrent modules whose weights do not move. Tangents pass through them step by step, as through the others.
        self._still = [m for m in model.modules() if pass_of(m) is SEQUENCE and m not in self._passes]
        like = self.slots[0].parameter
        self.U = nn.Parameter(torch.zeros(start, hyperparameters, dtype=like.dtype, device=like.device))
        self._pass = _Pass()
        self._every = tuple(self.slots)
        self._sizes = [slot.stop - slot.start for slot in self.slots]
        self._layouts: dict[nn.Module, Layout] = {}
        self._row_axes: dict[nn.Module, int | None] = {}
        self._functional: dict[str, Layout] = {}
        #: Whether the model may call fused attention. Linearised passes then disable its fast kernels.
        self.attends = True
        #: Whether the model calls functions that a linearised pass must compute by elementary operations.
        self.elementary = False
        self._names = {layer: name for name, layer in model.named_modules()}
        self._model = [model]  # in a list, so that it is not a part of this module
        # Before hooks that the layers have already, which may change the output.
        self._handles = [
            layer.register_forward_hook(_Hook(self._after), prepend=True, with_kwargs=True) for layer in self._layers
        ]
        self._handles += [
            layer.register_forward_pre_hook(_Hook(self._before), with_kwargs=True)
            for layer, parts in self._layers.items()
            if any(kind.tangent is not None for _, kind in parts.values())
        ]

    def _use(self, user: Owner, slot: Slot) -> None:
        """Add one use of a parameter."""
        if isinstance(user.kind, LayerKind):
            self._layers.setdefault(user.layer, {})[user.role] = (slot, user.kind)
        elif user.kind is not None:
            self._passes.setdefault(user.layer, (user.kind, {}))[1][user.role] = slot
        else:
            self.replaced.add(slot.name, user.layer, user.role)

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
        """The layers that use a responding parameter, by name, without modules whose own parameters are replaced."""
        return {self._names[layer]: layer for layer in (*self._layers, *self._passes)}

    def users(self, slot: Slot) -> list[nn.Module]:
        """The layers that use the parameter of a slot."""
        hooked = [layer for layer, parts in self._layers.items() if any(own is slot for own, _ in parts.values())]
        return hooked + [layer for layer, (_, parts) in self._passes.items() if slot in parts.values()]

    def kind(self, layer: nn.Module) -> LayerKind | ModulePass:
        """The kind of a responding layer."""
        return self._passes[layer][0] if layer in self._passes else self._kind(layer)

    def _kind(self, layer: nn.Module) -> LayerKind:
        return next(iter(self._layers[layer].values()))[1]

    def set_layout(self, layer: nn.Module, layout: Layout) -> None:
        """Tell where a layer's output has the batch; by default it is axis 0."""
        self._layouts[layer] = layout

    def layout(self, layer: nn.Module) -> Layout:
        """Where a layer's output has the batch."""
        return self._layouts.get(layer, FRONT)

    def suspend(self, layer: nn.Module) -> dict[str, tuple[Slot, LayerKind]]:
        """Let a layer with hooks not move for now, and return what `resume` needs."""
        parts = self._layers[layer]
        self._layers[layer] = {}
        return parts

    def resume(self, layer: nn.Module, parts: dict[str, tuple[Slot, LayerKind]], layout: Layout) -> None:
        """Let the layer move again, with this layout."""
        self._layers[layer] = parts
        self.set_layout(layer, layout)

    def set_row_axis(self, layer: nn.Module, axis: int | None) -> None:
        """Tell on which axis of its output a layer without a rule has one index per row of its weights."""
        self._row_axes[layer] = axis

    def drop(self, slot: Slot, reason: str) -> None:
        """Let a parameter respond no longer: not in its layers, in penalties, in `fold` or in an export.

        Its rows of U stay zero.

        Raises:
            ValueError: if no parameter is left.
        """
        self.slots.remove(slot)
        self._detach(slot)
        if self.coverage.covered.pop(slot.name, None) is not None:
            self.coverage.uncovered[slot.name] = reason
        self.coverage.layers = sum(map(bool, self._layers.values())) + sum(bool(p) for _, p in self._passes.values())
        if not self.slots:
            raise ValueError(f"`model` must have a layer that can respond, got none: '{slot.name}': {reason}")

    def _detach(self, slot: Slot) -> None:
        for layer in self.users(slot):
            if layer in self._layers:
                self._layers[layer] = {role: part for role, part in self._layers[layer].items() if part[0] is not slot}
            if layer in self._passes:
                kind, parts = self._passes[layer]
                self._passes[layer] = (kind, {role: own for role, own in parts.items() if own is not slot})
        self.replaced.remove(slot.name)
        self._functional.pop(slot.name, None)

    def replace(self, slot: Slot) -> bool:
        """Let a parameter be replaced wherever a module has it, with all parameters of its layers.

        That is exact for any use of the parameter, if one displacement serves all examples.

        Returns:
            Whether it can be: attention and recurrent layers compute their own output.
        """
        slots, layers = self._together(slot)
        if any(layer in self._passes and self._passes[layer][0] is not LEAF for layer in layers):
            return False
        for own in slots:
            self._detach(own)
            self.replaced.everywhere(own.name, own.parameter)
        return True

    def in_functions(self, slot: Slot, layout: Layout) -> tuple[list[Slot], Callable[[], None]] | None:
        """Let a parameter, with all parameters of its layers, move in `F.linear` and `F.embedding`.

        Returns:
            The parameters, and a function that undoes it; None if a layer has a pass of its own.
        """
        slots, layers = self._together(slot)
        if any(layer in self._passes for layer in layers):
            return None
        before = {layer: self._layers[layer] for layer in layers}

        def undo() -> None:
            self._layers.update(before)
            for own in slots:
                self._functional.pop(own.name, None)

        for own in slots:
            self._detach(own)
            self._functional[own.name] = layout
        return slots, undo

    def moves_in_functions(self, slot: Slot) -> bool:
        """Whether a parameter moves in functions."""
        return slot.name in self._functional

    def _together(self, slot: Slot) -> tuple[list[Slot], set[nn.Module]]:
        """The parameters and layers that hang together with a parameter, by shared layers and ties."""
        slots, layers = {slot.name: slot}, set(self.users(slot))
        while True:
            slots |= {own.name: own for layer in layers for own in self.of(layer)}
            wider = {layer for own in slots.values() for layer in self.users(own)}
            if wider <= layers:
                return list(slots.values()), layers
            layers |= wider

    def replace_in(self, layer: nn.Module) -> None:
        """Let the parameters of a layer without a rule be replaced in it, instead of having copies."""
        kind, parts = self._passes[layer]
        self._passes[layer] = (kind, {})
        for role, slot in parts.items():
            self.replaced.add(slot.name, *inside(layer, role))

    def leaves(self) -> list[nn.Module]:
        """The layers without a rule of their own."""
        return [layer for layer, (kind, parts) in self._passes.items() if kind is LEAF and parts]

    def of(self, layer: nn.Module) -> list[Slot]:
        """The parameters of a layer that respond."""
        hooked = [slot for slot, _ in self._layers.get(layer, {}).values()]
        return hooked + (list(self._passes[layer][1].values()) if layer in self._passes else [])

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
    def displaced_rows(
        self, rows: Tensor, linearised: bool = False, only: Collection[Slot] | None = None
    ) -> Iterator[None]:
        """The same with Uδ and Vδ of the whole network, (B or 1, K).

        Args:
            rows: Uδ and Vδ.
            linearised: see `displaced`.
            only: parameters that move; of layers with hooks, all move. None means all.
        """
        now = self._pass
        parts = rows.split(self._sizes, -1) if len(self._sizes) > 1 else (rows,)
        now.by_slot = dict(zip((slot.name for slot in self._every), parts, strict=True))
        now.linearised = linearised
        try:
            if self._passes or self._functional or self._still or self.replaced.uses():
                with self._in_modules(rows.shape[0] == 1, only):
                    yield
            else:
                yield
        finally:
            now.by_slot, now.primal, now.tangent = {}, None, None

    @contextmanager
    def _in_modules(self, one: bool, only: Collection[Slot] | None) -> Iterator[None]:
        """Replace the parameters and the passes of modules within the context."""
        slots = {slot.name: slot for slot in self.slots if only is None or slot in only}
        found = [
            Replacement(name, holder, role, self._part(slots[name]))
            for name, holder, role in self.replaced.uses()
            if name in slots
        ]
        passes: dict[nn.Module, Callable[..., Any]] = {}
        for layer, (kind, roles) in self._passes.items():
            parts = {role: self._part(slot) for role, slot in roles.items() if slot.name in slots}
            if kind is LEAF and one:
                found += [Replacement(roles[role].name, *inside(layer, role), part) for role, part in parts.items()]
            elif parts or (kind is SEQUENCE and self._step_by_step(layer)):
                layout = FRONT if one else self.layout(layer)
                own = Moved(layer, parts, self._pass.linearised, layout, self._row_axes.get(layer))
                passes[layer] = partial(kind.forward, layer, own)
        for layer in self._still:
            if self._step_by_step(layer):
                passes[layer] = partial(SEQUENCE.forward, layer, Moved(layer, {}, self._pass.linearised))
        modes = [m.training for m in self._statistics]
        try:
            for m in self._statistics:
                m.training = False
            with self.replaced.within(found, passes, self._pass.linearised), self._functions(slots):
                yield
        finally:
            for m, mode in zip(self._statistics, modes, strict=True):
                m.training = mode

    def _functions(self, slots: Mapping[str, Slot]) -> AbstractContextManager[Any]:
        uses = {
            id(slots[name].parameter): Use(self._part(slots[name]), slots[name].rows, layout)
            for name, layout in self._functional.items()
            if name in slots
        }
        return Functions(uses, self._pass.linearised) if uses else nullcontext()

    def _step_by_step(self, recurrent: nn.Module) -> bool:
        """Whether fused kernels lack a rule: the forward-mode one, or cuDNN's backward one in evaluation mode."""
        return self._pass.linearised or not recurrent.training

    def _part(self, slot: Slot) -> Part:
        return Part(self.direction(slot), self._pass.by_slot[slot.name], slot.dense)

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The layer gets the primal only. Its kind computes the tangent.
        now = self._pass
        if not (now.by_slot and now.linearised and self._layers[layer]):
            return None
        now.primal, now.tangent = fwAD.unpack_dual(first_of(layer, args, kwargs))
        rest, keywords = others_of(layer, args, kwargs)
        return (now.primal, *rest), keywords

    def _after(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        now = self._pass
        if not (now.by_slot and self._layers[layer]):
            return None
        kind = self._kind(layer)
        x, primal, tangent = first_of(layer, args, kwargs), output, None
        if now.linearised and kind.tangent is not None and now.primal is not None:
            # The layer got no tangent, so its output has none.
            x, x_tangent, now.primal, now.tangent = now.primal, now.tangent, None, None
        elif now.linearised:
            # The factor Uδ has no primal part, so the change depends on the primal x only and not on W_resp ẋ.
            x, x_tangent = fwAD.unpack_dual(x).primal, None
            primal, tangent = fwAD.unpack_dual(output)
        rest, keywords = others_of(layer, args, kwargs)
        if now.linearised and (rest or keywords):
            rest, keywords = mapped(lambda t: fwAD.unpack_dual(t).primal, (rest, keywords))
        applied = kind.apply(layer, x, None, *rest, **keywords) if kind.rows == "element" else None
        change = self._branch(layer, x, primal, applied, (rest, keywords)).to(primal.dtype)
        if not now.linearised:
            return output + change
        if x_tangent is not None and kind.tangent is not None:
            tangent = kind.tangent(layer, x, x_tangent, applied, *rest, **keywords)
        if change.shape != primal.shape:  # of a shared output, which gets the axis of the batch
            primal = primal + torch.zeros_like(change)
        dual: Tensor = fwAD.make_dual(primal, change if tangent is None else tangent + change)
        return dual

    def _branch(
        self, layer: nn.Module, x: Tensor, output: Tensor, applied: Tensor | None, further: tuple[Any, Any]
    ) -> Tensor:
        """Change of a layer's output: place(Uδ) ⊙ apply(W_resp, x) + place((Vδ) ⊙ b_resp)."""
        terms: list[Tensor] = []
        layout = self.layout(layer) if len(next(iter(self._pass.by_slot.values()))) > 1 else FRONT
        rest, keywords = further
        if layout.axis:
            if rest or keywords:
                rest, keywords = mapped(partial(alike, layout, x), further)
            x, output = layout.to_front(x), layout.to_front(output)
            applied = None if applied is None else layout.to_front(applied)
        for role, (slot, kind) in self._layers[layer].items():
            rows, direction = layout.spread(self._pass.by_slot[slot.name], output.shape[0]), self.direction(slot)
            if rows.shape[0] not in (1, output.shape[0]) and not layout.shared:
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
                out = layout.batched(kind.apply(layer, x, direction, *rest, **keywords))
                terms.append(out * kind.place(layer, rows.to(out.dtype), out))
        return layout.back(terms[0] if len(terms) == 1 else torch.add(*terms))

    def fold(self, delta: Tensor) -> dict[str, Tensor]:
        """Dense parameters w₀ + Θδ by name, for one δ (h,)."""
        row_change = self.row_change(delta[None])[0]
        return {s.name: s.parameter + s.change(row_change, self.direction(s)) for s in self.slots}


def _key(name: str) -> str:
    return name.replace(".", "/")


def _rows(users: list[Owner]) -> str:
    # A weight shared by an embedding and a linear layer has the embedding's structure in both layers.
    return "feature" if any(user.rows == "feature" for user in users) else users[0].rows


def _row_count(parameter: nn.Parameter, rows: str) -> int:
    return parameter.numel() if rows == "element" else parameter.shape[rows == "feature"]


def _direction(owner: Owner, parameter: nn.Parameter, generator: torch.Generator | None) -> Tensor:
    direction = torch.empty(parameter.shape, dtype=parameter.dtype)
    like = owner.kind is None or owner.kind is LEAF
    if like:
        direction.normal_(generator=generator)
    elif isinstance(owner.kind, LayerKind) and owner.role == "weight":
        owner.kind.initialise(owner.layer, direction, generator)
    elif isinstance(owner.kind, ModulePass) and not (direction.dim() == 1 and "bias" in owner.role):
        owner.kind.initialise(owner.layer, owner.role, direction, generator)
    else:
        bound = 0.1 / max(1, parameter.numel()) ** 0.5
        direction.uniform_(-bound, bound, generator=generator)
    found = torch.empty_like(parameter).copy_(direction)  # in the memory format of the parameter
    with torch.no_grad():
        return found * parameter.square().mean().sqrt().clamp_min(SMALLEST) if like else found
