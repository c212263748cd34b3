"""Modules that compute their output as a whole while their weights are displaced: attention, recurrent, all others."""

from torch import nn

from ray_deltastn.response.passes.attention import ATTENTION
from ray_deltastn.response.passes.base import ModulePass, Moved, Part
from ray_deltastn.response.passes.leaf import LEAF, is_leaf
from ray_deltastn.response.passes.norm_act import NAMES, NORM_ACT
from ray_deltastn.response.passes.recurrent import CELL, SEQUENCE

PASSES: tuple[ModulePass, ...] = (ATTENTION, SEQUENCE, CELL)


def pass_of(module: nn.Module) -> ModulePass | None:
    """The pass of a module, or None: a subclass that overrides `forward` does not have that of its parent.

    A module without a rule that holds its weights itself, such as the layer of another package, has the pass of `LEAF`.
    """
    for one in PASSES:
        for base in one.types:
            if isinstance(module, base) and _forward(type(module)) is _forward(base):
                return one
    if f"{type(module).__module__}.{type(module).__qualname__}" in NAMES:
        return NORM_ACT
    return LEAF if is_leaf(module) else None


def _forward(kind: type[nn.Module]) -> object:
    return kind.forward


__all__ = ["LEAF", "SEQUENCE", "ModulePass", "Moved", "Part", "pass_of"]
