"""Where the network uses each responding parameter, and how the parameter moves there.

| way                | what moves                                                              | where                |
|--------------------|-------------------------------------------------------------------------|----------------------|
| `hooked`           | the output of a layer with a rule, by a hook                            | `response.kinds`     |
| `passes`           | the output of a module that computes it as a whole                      | `response.passes`    |
| `replaced`         | the parameter itself, in the modules that have it                       | `response.replaced`  |
| `functional`       | the output of `F.linear` and `F.embedding`                              | `response.functions` |
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ray_deltastn.response.coverage import Owner
from ray_deltastn.response.kinds.base import LayerKind
from ray_deltastn.response.layout import FRONT, Layout
from ray_deltastn.response.passes import LEAF, ModulePass
from ray_deltastn.response.replaced import Replaced, inside
from ray_deltastn.response.slots import Slot


class Uses:
    """The uses of the responding parameters of a network.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.hooked: dict[nn.Module, dict[str, tuple[Slot, LayerKind]]] = {}
        self.passes: dict[nn.Module, tuple[ModulePass, dict[str, Slot]]] = {}
        #: The parameters that are replaced in their modules.
        self.replaced = Replaced(model)
        self.functional: dict[str, Layout] = {}
        #: Layer without a rule → axis of its output with one index per row of its weights; None if there is none.
        self.row_axes: dict[nn.Module, int | None] = {}
        self._layouts: dict[nn.Module, Layout] = {}
        #: Module → its name in the network.
        self.names = {layer: name for name, layer in model.named_modules()}

    def add(self, user: Owner, slot: Slot) -> None:
        """Add one use of a parameter."""
        if isinstance(user.kind, LayerKind):
            self.hooked.setdefault(user.layer, {})[user.role] = (slot, user.kind)
        elif user.kind is not None:
            self.passes.setdefault(user.layer, (user.kind, {}))[1][user.role] = slot
        else:
            self.replaced.add(slot.name, user.layer, user.role)

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers that use a responding parameter, by name, without modules whose own parameters are replaced."""
        return {self.names[layer]: layer for layer in (*self.hooked, *self.passes)}

    def users(self, slot: Slot) -> list[nn.Module]:
        """The layers that use the parameter of a slot."""
        hooked = [layer for layer, parts in self.hooked.items() if any(own is slot for own, _ in parts.values())]
        return hooked + [layer for layer, (_, parts) in self.passes.items() if slot in parts.values()]

    def kind(self, layer: nn.Module) -> LayerKind | ModulePass:
        """The kind of a responding layer."""
        return self.passes[layer][0] if layer in self.passes else self.hooked_kind(layer)

    def hooked_kind(self, layer: nn.Module) -> LayerKind:
        """The kind of a layer that responds through a hook."""
        return next(iter(self.hooked[layer].values()))[1]

    def set_layout(self, layer: nn.Module, layout: Layout) -> None:
        """Tell where a layer's output has the batch; by default it is axis 0."""
        self._layouts[layer] = layout

    def layout(self, layer: nn.Module) -> Layout:
        """Where a layer's output has the batch."""
        return self._layouts.get(layer, FRONT)

    def suspend(self, layer: nn.Module) -> dict[str, tuple[Slot, LayerKind]]:
        """Let a layer with hooks not move for now, and return what `resume` needs."""
        parts = self.hooked[layer]
        self.hooked[layer] = {}
        return parts

    def resume(self, layer: nn.Module, parts: dict[str, tuple[Slot, LayerKind]], layout: Layout) -> None:
        """Let the layer move again, with this layout."""
        self.hooked[layer] = parts
        self.set_layout(layer, layout)

    def detach(self, slot: Slot) -> None:
        """Let a parameter move nowhere."""
        for layer in self.users(slot):
            if layer in self.hooked:
                self.hooked[layer] = {role: part for role, part in self.hooked[layer].items() if part[0] is not slot}
            if layer in self.passes:
                kind, parts = self.passes[layer]
                self.passes[layer] = (kind, {role: own for role, own in parts.items() if own is not slot})
        self.replaced.remove(slot.name)
        self.functional.pop(slot.name, None)

    def replace(self, slot: Slot) -> bool:
        """Let a parameter be replaced wherever a module has it, with all parameters of its layers.

        That is exact for any use of the parameter, if one displacement serves all examples.

        Returns:
            Whether it can be: attention and recurrent layers compute their own output.
        """
        slots, layers = self._together(slot)
        if any(layer in self.passes and self.passes[layer][0] is not LEAF for layer in layers):
            return False
        for own in slots:
            self.detach(own)
            self.replaced.everywhere(own.name, own.parameter)
        return True

    def in_functions(self, slot: Slot, layout: Layout) -> tuple[list[Slot], Callable[[], None]] | None:
        """Let a parameter, with all parameters of its layers, move in `F.linear` and `F.embedding`.

        Returns:
            The parameters, and a function that undoes it; None if a layer has a pass of its own.
        """
        slots, layers = self._together(slot)
        if any(layer in self.passes for layer in layers):
            return None
        before = {layer: self.hooked[layer] for layer in layers}
        replaced = self.replaced.uses()

        def undo() -> None:
            self.hooked.update(before)
            self.replaced.restore(replaced)
            for own in slots:
                self.functional.pop(own.name, None)

        for own in slots:
            self.detach(own)
            self.functional[own.name] = layout
        return slots, undo

    def moves_in_functions(self, slot: Slot) -> bool:
        """Whether a parameter moves in functions."""
        return slot.name in self.functional

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
        kind, parts = self.passes[layer]
        self.passes[layer] = (kind, {})
        for role, slot in parts.items():
            self.replaced.add(slot.name, *inside(layer, role))

    def leaves(self) -> list[nn.Module]:
        """The layers without a rule of their own."""
        return [layer for layer, (kind, parts) in self.passes.items() if kind is LEAF and parts]

    def of(self, layer: nn.Module) -> list[Slot]:
        """The parameters of a layer that respond."""
        hooked = [slot for slot, _ in self.hooked.get(layer, {}).values()]
        return hooked + (list(self.passes[layer][1].values()) if layer in self.passes else [])

    @property
    def layer_count(self) -> int:
        """Number of layers with a parameter that moves."""
        return sum(map(bool, self.hooked.values())) + sum(bool(parts) for _, parts in self.passes.values())
