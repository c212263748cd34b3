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


class Attending(nn.Module):
    """`nn.MultiheadAttention` with all its options: other sizes of keys and values, masks, two more positions."""

    def __init__(self):
        super().__init__()
        self.keys, self.values = nn.Linear(4, 5), nn.Linear(4, 6)
        self.attention = nn.MultiheadAttention(
            4, 2, kdim=5, vdim=6, add_bias_kv=True, add_zero_attn=True, batch_first=True
        )

    def forward(self, x):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        hidden = x[..., 0] > 1.5
        out, weights = self.attention(
            x, self.keys(x), self.values(x), attn_mask=causal, key_padding_mask=hidden, average_attn_weights=False
        )
        return torch.cat([out.mean(1), weights.mean((1, 2))], 1)


class Recurrent(nn.Module):
    """A recurrent layer whose output and last state are used; the first state is given if `carried`."""

    def __init__(self, kind, carried=False, **options):
        super().__init__()
        self.first, self.layer, self.carried = nn.Linear(3, 4), kind(4, 3, batch_first=True, **options), carried
        size = (options.get("proj_size") or 3) * (2 if options.get("bidirectional") else 1)
        self.out = nn.Linear(size, 2)

    def forward(self, x):
        x, state = self.first(x), None
        if self.carried:
            count = self.layer.num_layers * (2 if self.layer.bidirectional else 1)
            cell = torch.sin(x.mean(1, keepdim=True)[..., :3]).transpose(0, 1).expand(count, -1, -1).contiguous()
            hidden = cell[..., : getattr(self.layer, "proj_size", 0) or 3].contiguous()
            state = (hidden, cell) if isinstance(self.layer, nn.LSTM) else hidden
        y, last = self.layer(x, state)
        last = torch.cat(last, -1) if isinstance(last, tuple) else last
        return self.out(y).mean(1) + torch.tanh(last).transpose(0, 1).flatten(1).mean(1, keepdim=True)


class Packed(nn.Module):
    """A recurrent layer with sequences of different lengths; those that end early are marked by zeros."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.out = kind(3, 2, bidirectional=True, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        lengths = (x != 0).any(-1).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, last = self.layer(packed)
        last = last[1] if isinstance(last, tuple) else last
        y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
        return self.out(y).sum(1) + torch.tanh(last).transpose(0, 1).flatten(1)[:, :2]


def ragged(batch):
    x = torch.randn(batch, 5, 3, dtype=torch.float64)
    for i, length in enumerate([2, 5, 3, 1, 4][:batch]):
        x[i, length:] = 0.0
    return x


class Cells(nn.Module):
    """A recurrent cell, step by step."""

    def __init__(self, kind, **options):
        super().__init__()
        self.cell = kind(3, 4, **options)

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] * state[1] if isinstance(state, tuple) else state


class Tokens(nn.Module):
    """A class token, positions and a scale, owned by a module with layers, as in a vision transformer."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, 4, 4))
        self.rows = nn.Parameter(torch.randn(4, 4))
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return torch.tanh(self.layer(x) + self.rows).mean(1)


class OwnNorm(nn.Module):
    """RMS normalisation of another package."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class Columns(nn.Module):
    """A linear layer of another package whose weight has the outputs on axis 1, as transformers' `Conv1D`."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Positive(nn.Module):
    """A parametrisation: weights are positive."""

    def forward(self, x):
        return x.exp()


def parametrised():
    first = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 2))
    second = nn.utils.parametrize.register_parametrization(nn.Linear(6, 3), "weight", Positive())
    return nn.Sequential(
        first, nn.Tanh(), nn.Flatten(), second, nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))
    )


class Pair(nn.Module):
    """A bilinear layer, which has two inputs."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.both = nn.Linear(4, 3), nn.Linear(4, 2), nn.Bilinear(3, 2, 3)

    def forward(self, x):
        return self.both(torch.tanh(self.one(x)), self.two(x))


class Bags(nn.Module):
    """Bags of words."""

    def __init__(self, mode="mean"):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(WORDS, 4, mode=mode, padding_idx=1), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.bag(x)))


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
    Network("attention-options", Attending, real(3, 4)),
    Network("lstm", lambda: Recurrent(nn.LSTM), real(4, 3)),
    Network(
        "lstm-options", lambda: Recurrent(nn.LSTM, True, num_layers=2, bidirectional=True, proj_size=2), real(3, 3)
    ),
    Network("gru", lambda: Recurrent(nn.GRU, True, num_layers=2), real(4, 3)),
    Network("rnn", lambda: Recurrent(nn.RNN, bidirectional=True, bias=False), real(4, 3)),
    Network("rnn-relu", lambda: Recurrent(nn.RNN, nonlinearity="relu"), real(4, 3)),
    Network("lstm-packed", lambda: Packed(nn.LSTM), ragged),
    Network("gru-packed", lambda: Packed(nn.GRU), ragged),
    Network("lstm-cell", lambda: Cells(nn.LSTMCell), real(3, 3)),
    Network("gru-cell", lambda: Cells(nn.GRUCell, bias=False), real(3, 3)),
    Network("rnn-cell", lambda: Cells(nn.RNNCell), real(3, 3)),
    Network("tokens", Tokens, real(3, 4)),
    Network("other-packages", lambda: head(8, Columns(3, 4), nn.Tanh(), OwnNorm(4)), real(2, 3)),
    Network("bilinear", Pair, real(4)),
    Network("embedding-bag", Bags, words(5)),
    Network("embedding-bag-sum", lambda: Bags("sum"), words(4)),
    Network(
        "conv-transpose",
        lambda: head(50, nn.Conv2d(2, 4, 1), nn.Tanh(), nn.ConvTranspose2d(4, 2, 3, stride=2, groups=2)),
        real(2, 2, 2),
    ),
    Network(
        "conv-transpose-1d",
        lambda: head(9, nn.ConvTranspose1d(2, 3, 2, padding=1, output_padding=0), nn.PReLU(3)),
        real(2, 4),
    ),
    Network("prelu", lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 3)), real(4)),
    Network(
        "instancenorm",
        lambda: head(12, nn.Conv2d(2, 3, 2), nn.InstanceNorm2d(3, affine=True), nn.Tanh()),
        real(2, 3, 3),
    ),
    Network(
        "instancenorm-running",
        lambda: head(9, nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True, track_running_stats=True), nn.Tanh()),
        real(2, 4),
    ),
)

BY_NAME = {network.name: network for network in NETWORKS}

#: Networks with a layer that has a copy of its weights for each example: products of matrices round in another way.
COPIES = ("other-packages",)
