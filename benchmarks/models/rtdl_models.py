"""Networks for tables from rtdl_revisiting_models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from rtdl_revisiting_models import MLP, FTTransformer, ResNet
from torch import Tensor

from benchmarks.models.entry import Entry

CARDINALITIES = [3, 5]


def transformer() -> Any:
    """FT-Transformer with two blocks for four numbers and two categories."""
    return FTTransformer(
        n_cont_features=4,
        cat_cardinalities=CARDINALITIES,
        d_out=1,
        n_blocks=2,
        d_block=16,
        attention_n_heads=2,
        attention_dropout=0.1,
        ffn_d_hidden=None,
        ffn_d_hidden_multiplier=2.0,
        ffn_dropout=0.1,
        residual_dropout=0.0,
    )


def resnet() -> Any:
    """ResNet with two blocks."""
    sizes = {"d_in": 4, "d_out": 1, "n_blocks": 2, "d_block": 16, "d_hidden": 32, "d_hidden_multiplier": None}
    return ResNet(**sizes, dropout1=0.1, dropout2=0.1)


def perceptron() -> Any:
    """Perceptron with two hidden layers."""
    return MLP(d_in=4, d_out=1, n_blocks=2, d_block=16, dropout=0.1)


def numbers(count: int) -> tuple[Tensor, Tensor]:
    """Tables with numbers only."""
    return torch.randn(count, 4), torch.randn(count, 1)


def mixed(count: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Tables with numbers and categories."""
    categories = torch.stack([torch.randint(0, most, (count,)) for most in CARDINALITIES], 1)
    return (torch.randn(count, 4), categories), torch.randn(count, 1)


RTDL = [
    Entry("FT-Transformer", "rtdl", transformer, mixed, F.mse_loss),
    Entry("ResNet", "rtdl", resnet, numbers, F.mse_loss),
    Entry("MLP", "rtdl", perceptron, numbers, F.mse_loss),
]
