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
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from ray_deltastn.response.coverage import survey
from ray_deltastn.response.factors import factors_of
from ray_deltastn.response.functions import Functions, Use
from ray_deltastn.response.inputs import alike, first_of, others_of
from ray_deltastn.response.kinds.base import on_features
from ray_deltastn.response.layout import FRONT
from ray_deltastn.response.passes import LEAF, SEQUENCE, Moved, Part, pass_of
from ray_deltastn.response.passes.leaf import parametrisations
from ray_deltastn.response.replaced import Replacement, inside
from ray_deltastn.response.slots import Slot, first_direction, row_count, rows_of
from ray_deltastn.response.trees import mapped
from ray_deltastn.response.uses import Uses


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
        #: Where each parameter is used, and how it moves there.
        self.uses = Uses(model)
        self.directions = nn.ParameterDict()
        start = 0
        #: Modules with statistics of weights, such as spectral norms: only plain passes in training mode change them.
        self._statistics = [m for layer in model.modules() for m in parametrisations(layer)]
        for parameter, users in owners.items():
            rows = rows_of(users)
            stop = start + row_count(parameter, rows)
            slot = Slot(names[parameter], parameter, rows, start, stop)
            self.slots.append(slot)
            self.directions[_key(slot.name)] = nn.Parameter(first_direction(users[0], parameter, generator))
            for user in users:
                self.uses.add(user, slot)
            start = stop
        #: Recurrent modules whose weights do not move. Tangents pass through them step by step, as through the others.
        self._still = [m for m in model.modules() if pass_of(m) is SEQUENCE and m not in self.uses.passes]
        like = self.slots[0].parameter
        self.U = nn.Parameter(torch.zeros(start, hyperparameters, dtype=like.dtype, device=like.device))
        self._pass = _Pass()
        self._every = tuple(self.slots)
        self._sizes = [slot.stop - slot.start for slot in self.slots]
        #: Whether the model may call fused attention. Linearised passes then disable its fast kernels.
        self.attends = True
        #: Whether the model calls functions that a linearised pass must compute by elementary operations.
        self.elementary = False
        self._model = [model]  # in a list, so that it is not a part of this module
        # Before hooks that the layers have already, which may change the output.
        self._handles = [
            layer.register_forward_hook(_Hook(self._after), prepend=True, with_kwargs=True)
            for layer in self.uses.hooked
        ]
        self._handles += [
            layer.register_forward_pre_hook(_Hook(self._before), with_kwargs=True)
            for layer, parts in self.uses.hooked.items()
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

    def drop(self, slot: Slot, reason: str) -> None:
        """Let a parameter respond no longer: not in its layers, in penalties, in `fold` or in an export.

        Its rows of U stay zero.

        Raises:
            ValueError: if no parameter is left.
        """
        self.slots.remove(slot)
        self.uses.detach(slot)
        if self.coverage.covered.pop(slot.name, None) is not None:
            self.coverage.uncovered[slot.name] = reason
        self.coverage.layers = self.uses.layer_count
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
            if self.uses.passes or self.uses.functional or self._still or self.uses.replaced.uses():
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
            for name, holder, role in self.uses.replaced.uses()
            if name in slots
        ]
        passes: dict[nn.Module, Callable[..., Any]] = {}
        for layer, (kind, roles) in self.uses.passes.items():
            parts = {role: self._part(slot) for role, slot in roles.items() if slot.name in slots}
            if kind is LEAF and one:
                found += [Replacement(roles[role].name, *inside(layer, role), part) for role, part in parts.items()]
            elif parts or (kind is SEQUENCE and self._step_by_step(layer)):
                layout = FRONT if one else self.uses.layout(layer)
                own = Moved(layer, parts, self._pass.linearised, layout, self.uses.row_axes.get(layer))
                passes[layer] = partial(kind.run, layer, own)
        for layer in self._still:
            if self._step_by_step(layer):
                passes[layer] = partial(SEQUENCE.run, layer, Moved(layer, {}, self._pass.linearised))
        modes = [m.training for m in self._statistics]
        try:
            for m in self._statistics:
                m.training = False
            with self.uses.replaced.within(found, passes, self._pass.linearised), self._functions(slots):
                yield
        finally:
            for m, mode in zip(self._statistics, modes, strict=True):
                m.training = mode

    def _functions(self, slots: Mapping[str, Slot]) -> AbstractContextManager[Any]:
        uses = {
            id(slots[name].parameter): Use(self._part(slots[name]), slots[name].rows, layout)
            for name, layout in self.uses.functional.items()
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
        if not (now.by_slot and now.linearised and self.uses.hooked[layer]):
            return None
        now.primal, now.tangent = fwAD.unpack_dual(first_of(layer, args, kwargs))
        rest, keywords = others_of(layer, args, kwargs)
        return (now.primal, *rest), keywords

    def _after(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        now = self._pass
        if not (now.by_slot and self.uses.hooked[layer]):
            return None
        kind = self.uses.hooked_kind(layer)
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
        layout = self.uses.layout(layer) if len(next(iter(self._pass.by_slot.values()))) > 1 else FRONT
        factors = factors_of(layer)
        rest, keywords = further
        if layout.axis:
            if rest or keywords:
                rest, keywords = mapped(partial(alike, layout, x), further)
            x, output = layout.to_front(x), layout.to_front(output)
            applied = None if applied is None else layout.to_front(applied)
        for role, (slot, kind) in self.uses.hooked[layer].items():
            rows, direction = layout.spread(self._pass.by_slot[slot.name], output.shape[0]), self.direction(slot)
            direction = direction * factors[role] if role in factors else direction
            if rows.shape[0] not in (1, output.shape[0]) and not layout.shared:
                name = self.uses.names[layer]
                raise ValueError(
                    f"`output.shape[0]` must be the batch size for a response per example, got {output.shape[0]} for "
                    f"a batch of {rows.shape[0]} in layer '{name}'; if the rows of this layer depend on the data, give "
                    'all hyperparameters `per="batch"`'
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
