"""The responding parameters: their rows in the matrix U, their dense changes, and the directions they start with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ray_deltastn.response.coverage import Owner
from ray_deltastn.response.kinds.base import LayerKind
from ray_deltastn.response.passes import LEAF, ModulePass

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


def rows_of(users: list[Owner]) -> str:
    """What a row of a parameter is, for all its uses."""
    # A weight shared by an embedding and a linear layer has the embedding's structure in both layers.
    return "feature" if any(user.rows == "feature" for user in users) else users[0].rows


def row_count(parameter: nn.Parameter, rows: str) -> int:
    """Number of rows of a parameter."""
    return parameter.numel() if rows == "element" else parameter.shape[rows == "feature"]


def first_direction(owner: Owner, parameter: nn.Parameter, generator: torch.Generator | None) -> Tensor:
    """W_resp or b_resp at the start: as the layer initialises its weight, small for a bias."""
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
