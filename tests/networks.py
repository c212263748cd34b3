"""Small networks, at least one per layer kind, with inputs; all in float64 and in evaluation mode."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

BATCH = 3
WORDS = 7


@dataclass(frozen=True)
class Network:
    """How to build a network and a batch of inputs for it."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], torch.Tensor]

    def __call__(self, batch=BATCH, seed=0):
        """Model and inputs in float64; evaluation mode; random normalisation parameters and running statistics."""
        torch.manual_seed(seed)
        model = self.build().double().eval()
        with torch.no_grad():
            for module in model.modules():
                if getattr(module, "running_mean", None) is not None:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2.0)
                if type(module).__name__.endswith("Norm") or "BatchNorm" in type(module).__name__:
                    for p in module.parameters(recurse=False):
                        p.add_(0.3 * torch.randn_like(p))
        return model, self.inputs(batch)


def real(*shape):
    return lambda batch: torch.randn(batch, *shape, dtype=torch.float64)


def words(*shape):
    return lambda batch: torch.randint(0, WORDS, (batch, *shape))


class TiedEmbeddingFirst(nn.Module):
    """An embedding whose table is also the weight of the output layer; the embedding is defined first."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 4)
        self.out = nn.Linear(4, WORDS)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(torch.tanh(self.embed(x)).mean(1))


class TiedLinearFirst(nn.Module):
    """Like `TiedEmbeddingFirst`, but the output layer is defined first and is applied at every position."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, WORDS, bias=False)
        self.embed = nn.Embedding(WORDS, 4)
        self.embed.weight = self.out.weight

    def forward(self, x):
        return self.out(torch.tanh(self.embed(x)))


class UsedTwice(nn.Module):
    """One layer called twice in a pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class SharedParameter(nn.Module):
    """Two layers with the same weight and different biases."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Attention(nn.Module):
    """Self-attention: normalisation, projection, `scaled_dot_product_attention`, residual connection, output layer."""

    def __init__(self, width=4, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.out(y.transpose(1, 2).reshape(batch, length, width)))


class Residual(nn.Module):
    """Two residual connections; one is added in place."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 2, 3, padding=1)
        self.second = nn.Conv2d(2, 2, 1, bias=False)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        y = torch.tanh(self.first(x)) + x
        z = self.second(y)
        z += y
        return self.head(z.mean((2, 3)))


class Keyword(nn.Module):
    """Layers that are called with keyword arguments."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(input=torch.tanh(self.norm(input=self.first(input=x))))


class Encoder(nn.Module):
    """PyTorch's encoder layer after a linear layer. In evaluation mode it has a fused path that calls no layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.encoder(self.first(x)).mean(1))


class FusedAttention(nn.Module):
    """`nn.MultiheadAttention` between two linear layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def half_frozen():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


def head(features, *layers):
    """Layers, followed by an output layer whose input has a nonzero tangent."""
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3))


NETWORKS = (
    Network("linear", lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), real(4)),
    Network(
        "linear-no-bias", lambda: nn.Sequential(nn.Linear(4, 5, False), nn.Tanh(), nn.Linear(5, 3, False)), real(4)
    ),
    Network("linear-middle-axis", lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2)), real(3, 4)),
    Network("linear-middle-axes", lambda: nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2)), real(3, 4, 5)),
    Network("linear-inplace-relu", lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(True), nn.Linear(6, 3)), real(4)),
    Network(
        "conv1d-groups-stride-dilation",
        lambda: head(9, nn.Conv1d(2, 4, 3, stride=2, padding=1, groups=2), nn.Tanh(), nn.Conv1d(4, 3, 2, dilation=2)),
        real(2, 10),
    ),
    Network(
        "conv2d-same-dilation",
        lambda: head(32, nn.Conv2d(2, 3, 3, padding="same", dilation=2), nn.Tanh(), nn.Conv2d(3, 2, 1, bias=False)),
        real(2, 4, 4),
    ),
    Network(
        "conv2d-depthwise",
        lambda: head(36, nn.Conv2d(2, 2, 1), nn.Tanh(), nn.Conv2d(2, 4, 3, groups=2, padding=1)),
        real(2, 3, 3),
    ),
    Network(
        "conv2d-circular-stride",
        lambda: head(
            8, nn.Conv2d(1, 3, 3, stride=2, padding=1, padding_mode="circular"), nn.ReLU(True), nn.Conv2d(3, 2, 2)
        ),
        real(1, 5, 5),
    ),
    Network("conv3d", lambda: head(16, nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Conv3d(2, 2, 1)), real(1, 3, 3, 3)),
    Network(
        "embedding-padding",
        lambda: head(20, nn.Embedding(WORDS, 4, padding_idx=2), nn.Tanh(), nn.Linear(4, 4)),
        words(5),
    ),
    Network("embedding-one-word", lambda: nn.Sequential(nn.Embedding(WORDS, 4), nn.Tanh(), nn.Linear(4, 3)), words()),
    Network("batchnorm1d", lambda: head(4, nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()), real(3)),
    Network("batchnorm1d-length", lambda: head(12, nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.Tanh()), real(2, 4)),
    Network("batchnorm2d", lambda: head(12, nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh()), real(2, 3, 3)),
    Network("batchnorm3d", lambda: head(16, nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Tanh()), real(1, 3, 3, 3)),
    Network("layernorm", lambda: head(12, nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh()), real(3, 3)),
    Network("layernorm-two-axes", lambda: head(24, nn.Linear(3, 4), nn.LayerNorm((3, 4)), nn.Tanh()), real(2, 3, 3)),
    Network("layernorm-no-bias", lambda: head(12, nn.Linear(3, 4), nn.LayerNorm(4, bias=False)), real(3, 3)),
    Network("groupnorm", lambda: head(16, nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh()), real(2, 3, 3)),
    Network("rmsnorm", lambda: head(12, nn.Linear(3, 4), nn.RMSNorm(4), nn.Tanh()), real(3, 3)),
    Network("rmsnorm-two-axes", lambda: head(24, nn.Linear(3, 4), nn.RMSNorm((3, 4), eps=0.1)), real(2, 3, 3)),
    Network("tied-embedding-first", TiedEmbeddingFirst, words(4)),
    Network("tied-linear-first", TiedLinearFirst, words(4)),
    Network("used-twice", UsedTwice, real(4)),
    Network("shared-parameter", SharedParameter, real(4)),
    Network("attention", Attention, real(3, 4)),
    Network("residual", Residual, real(2, 3, 3)),
    Network("keyword", Keyword, real(4)),
    Network("half-frozen", half_frozen, real(4)),
    Network("encoder-layer", Encoder, real(3, 4)),
    Network("fused-attention", FusedAttention, real(3, 4)),
)

BY_NAME = {network.name: network for network in NETWORKS}
