"""Batch normalisation with an activation in one module, as timm has it: the scale and the shift change per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ray_deltastn.response.kinds.base import Rows
from ray_deltastn.response.kinds.batchnorm import apply
from ray_deltastn.response.passes.base import ModulePass, Moved

#: Full names of the classes; their packages need not be imported.
NAMES = ("timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.SyncBatchNormAct")


def forward(module: Any, moved: Moved, x: Tensor) -> Tensor:
    """act(drop(γ x̂ + β)), where x̂ is x normalised as in the module's current mode; statistics do not change."""
    y = apply(module, x, None)
    if module.weight is not None:
        y = y * moved.placed(moved.vector("weight"), y, 1) + moved.placed(moved.vector("bias"), y, 1)
    out: Tensor = module.act(module.drop(y))
    return out


def parameters(module: nn.Module) -> dict[str, Rows]:
    """Scale and shift."""
    return dict.fromkeys(("weight", "bias"), "element")


def initialise(module: nn.Module, name: str, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp with ones, as normalisation layers fill their scales."""
    direction.fill_(1.0)


NORM_ACT = ModulePass((), parameters, forward, initialise, features=0)
