"""The table of layer kinds that can respond. A new kind needs one file in this folder and one line in the table."""

from torch import nn

from ray_deltastn.response.kinds.base import LayerKind
from ray_deltastn.response.kinds.batchnorm import BATCHNORM
from ray_deltastn.response.kinds.conv import CONV
from ray_deltastn.response.kinds.embedding import EMBEDDING
from ray_deltastn.response.kinds.groupnorm import GROUPNORM
from ray_deltastn.response.kinds.layernorm import LAYERNORM
from ray_deltastn.response.kinds.linear import LINEAR
from ray_deltastn.response.kinds.rmsnorm import RMSNORM

KINDS: tuple[LayerKind, ...] = (
    LINEAR,
    CONV,
    EMBEDDING,
    BATCHNORM,
    LAYERNORM,
    GROUPNORM,
    RMSNORM,
)


def kind_of(layer: nn.Module) -> LayerKind | None:
    """The kind of a layer, or None. A subclass that overrides `forward` does not have the kind of its parent."""
    for kind in KINDS:
        for base in kind.types:
            if isinstance(layer, base) and type(layer).forward is base.forward:
                return kind
    return None


__all__ = ["KINDS", "LayerKind", "kind_of"]
