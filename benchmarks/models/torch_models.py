"""Networks that people write themselves with PyTorch's layers."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.entry import Entry, images

WORDS, LENGTH = 32, 8


class Recurrent(nn.Module):
    """A classifier of texts with a recurrent network."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(WORDS, 8), nn.Dropout(0.1)
        self.layers, self.out = kind(8, 16, 2, batch_first=True, bidirectional=True), nn.Linear(32, 3)

    def forward(self, words: Tensor) -> Tensor:
        """Scores (B, 3)."""
        out: Tensor = self.out(self.drop(self.layers(self.words(words))[0].mean(1)))
        return out


class Encoder(nn.Module):
    """A classifier of texts with PyTorch's encoder and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 16), nn.Parameter(0.02 * torch.randn(LENGTH, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True)
        self.layers, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)

    def forward(self, words: Tensor) -> Tensor:
        """Scores (B, 3)."""
        out: Tensor = self.out(self.layers(self.words(words) + self.places).mean(1))
        return out


class Autoencoder(nn.Module):
    """A variational autoencoder of images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 512), nn.Unflatten(1, (8, 8, 8)), nn.ConvTranspose2d(8, 3, 4, 4))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The image again, and mean and log variance of its code."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return {"image": self.decoder(self.drop(code)), "mean": mean, "log_variance": log_variance}


class UNet(nn.Module):
    """A segmentation network with two scales and connections across them."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = self.block(3, 8), self.block(8, 16)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), self.block(16, 8)
        self.out, self.drop = nn.Conv2d(8, 3, 1), nn.Dropout2d(0.1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Module:
        """A convolution with normalisation."""
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(2, outputs), nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, 3, height, width)."""
        kept = self.down(x)
        deep = self.up(self.drop(self.deep(F.max_pool2d(kept, 2))))
        out: Tensor = self.out(self.last(torch.cat([kept, deep], 1)))
        return out


class Block(nn.Module):
    """A block of nanoGPT: causal attention in one product, and a perceptron."""

    def __init__(self, width: int = 16, heads: int = 2, rate: float = 0.1) -> None:
        super().__init__()
        self.heads, self.dropout = heads, rate
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(rate))
        self.resid_dropout = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width)."""
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).chunk(3, 2))
        rate = self.dropout if self.training else 0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + self.resid_dropout(self.c_proj(mixed.transpose(1, 2).flatten(2)))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class NanoGPT(nn.Module):
    """nanoGPT: positions from a table, and the words' table as the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(WORDS, 16), nn.Embedding(LENGTH, 16), nn.Dropout(0.1)
        self.h, self.ln_f = nn.Sequential(Block(), Block()), nn.LayerNorm(16)
        self.lm_head = nn.Linear(16, WORDS, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, words: Tensor) -> Tensor:
        """Scores of the next word (B, T, words)."""
        places = torch.arange(words.shape[1], device=words.device)
        out: Tensor = self.lm_head(self.ln_f(self.h(self.drop(self.wte(words) + self.wpe(places)))))
        return out


def sentences(count: int) -> tuple[Tensor, Tensor]:
    """Random words (B, T) and classes (B,)."""
    return torch.randint(0, WORDS, (count, LENGTH)), torch.randint(0, 3, (count,))


def texts(count: int) -> tuple[Tensor, Tensor]:
    """Random words (B, T) and the next words."""
    words = torch.randint(0, WORDS, (count, LENGTH + 1))
    return words[:, :-1], words[:, 1:]


def copies(count: int) -> tuple[Tensor, Tensor]:
    """Images that are their own targets."""
    x = images(count)[0]
    return x, x


def masks(count: int) -> tuple[Tensor, Tensor]:
    """Images and a class for each pixel."""
    return images(count)[0], torch.randint(0, 3, (count, 32, 32))


def next_words(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the next words."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def bound(output: dict[str, Tensor], image: Tensor) -> Tensor:
    """Negative evidence lower bound."""
    divergence = output["mean"] ** 2 + output["log_variance"].exp() - output["log_variance"] - 1
    return F.mse_loss(output["image"], image) + 0.01 * divergence.mean()


TORCH = [
    Entry("LSTM", "torch", partial(Recurrent, nn.LSTM), sentences),
    Entry("GRU", "torch", partial(Recurrent, nn.GRU), sentences),
    Entry("TransformerEncoder", "torch", Encoder, sentences, attributes=("dropout",)),
    Entry("VAE", "torch", Autoencoder, copies, bound),
    Entry("U-Net", "torch", UNet, masks),
    Entry("nanoGPT", "torch", NanoGPT, texts, next_words, attributes=("dropout",)),
]
