"""Networks that predict the next word or character, with their regularisers: an LSTM and a transformer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.regularizers import (
    ActivationPenalty,
    DropConnect,
    Dropout,
    EmbeddingDropout,
    TemporalActivationPenalty,
    VariationalDropout,
)

#: State of each layer of an LSTM, (h, c): (B, units) each.
State = tuple[tuple[Tensor, Tensor], ...]
#: Initial weights of embeddings are uniform between minus and plus this number.
RANGE = 0.1


class LSTMModel(nn.Module):
    """LSTM layers between an embedding and a decoder, with the seven hyperparameters of H.3.

    | hyperparameter        | where it acts                                                                      |
    |-----------------------|------------------------------------------------------------------------------------|
    | `embedding_dropout`   | on words of the embedding                                                          |
    | `input_dropout`       | on the input of the first layer, one mask for a sequence                           |
    | `hidden_dropout`      | between layers, one mask for a sequence                                            |
    | `output_dropout`      | on the output of the last layer, one mask for a sequence                           |
    | `dropconnect`         | on the hidden-to-hidden weights of all layers, one mask for a minibatch            |
    | `activation`          | penalty on the output of the last layer after dropout                              |
    | `temporal_activation` | penalty on changes of the output of the last layer before dropout, in time         |

    Args:
        words: size of the vocabulary.
        units: units of each layer. If the decoder is tied, the last layer has `embedding` units.
        embedding: features of a word.
        layers: number of LSTM layers.
        tied: whether the decoder has the weight of the embedding.
    """

    def __init__(self, words: int, units: int = 650, embedding: int = 650, layers: int = 2, tied: bool = True) -> None:
        super().__init__()
        table = nn.Embedding(words, embedding)
        nn.init.uniform_(table.weight, -RANGE, RANGE)
        sizes = [embedding, *[units] * (layers - 1), embedding if tied else units]
        self.embedding = EmbeddingDropout("embedding_dropout", table)
        self.input_dropout = VariationalDropout("input_dropout")
        self.layers = nn.ModuleList(
            DropConnect("dropconnect", nn.LSTM(before, after, batch_first=True)) for before, after in pairwise(sizes)
        )
        self.hidden_dropout = VariationalDropout("hidden_dropout") if layers > 1 else nn.Identity()
        self.temporal_activation = TemporalActivationPenalty("temporal_activation")
        self.output_dropout = VariationalDropout("output_dropout")
        self.activation = ActivationPenalty("activation")
        self.decoder = nn.Linear(sizes[-1], words)
        nn.init.uniform_(self.decoder.weight, -RANGE, RANGE)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = table.weight
        self._sizes = sizes[1:]

    def first_state(self) -> State:
        """The state of one sequence before its first segment: zeros."""
        return tuple((torch.zeros(size), torch.zeros(size)) for size in self._sizes)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Scores of the next words (B, words, T), and the state after the segment.

        Args:
            tokens: words (B, T).
            state: (h, c) of each layer before the segment, (B, units) each.
        """
        x = self.input_dropout(self.embedding(tokens))  # (B, T, embedding)
        after: list[tuple[Tensor, Tensor]] = []
        for number, (layer, (h, c)) in enumerate(zip(self.layers, state, strict=True)):
            x = self.hidden_dropout(x) if number else x
            x, (h, c) = layer(x, (h[None], c[None]))
            after.append((h[0], c[0]))
        x = self.activation(self.output_dropout(self.temporal_activation(x)))
        return self.decoder(x).transpose(1, 2), tuple(after)


class Block(nn.Module):
    """One layer of a transformer: causal attention and an MLP, each behind a layer normalisation.

    Args:
        width: features.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.ModuleDict({"in": nn.Linear(width, 3 * width), "out": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"in": nn.Linear(width, 4 * width), "out": nn.Linear(4 * width, width)})
        self.attention_dropout = Dropout("attention_dropout")
        self.residual_dropout = Dropout("residual_dropout")
        self.mlp_dropout = Dropout("mlp_dropout")

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, T, width)."""
        q, k, v = (
            self.attention["in"](self.attention_norm(x)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2).chunk(3, 1)
        )
        rate: Any = self.attention_dropout.p
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + self.residual_dropout(self.attention["out"](y.transpose(1, 2).flatten(2)))
        y = self.mlp_dropout(F.gelu(self.mlp["in"](self.mlp_norm(x))))
        found: Tensor = x + self.residual_dropout(self.mlp["out"](y))
        return found


class Transformer(nn.Module):
    """A causal transformer with learned positions.

    | hyperparameter      | where it acts                                                 |
    |---------------------|---------------------------------------------------------------|
    | `embedding_dropout` | on the sum of the embeddings of tokens and positions          |
    | `attention_dropout` | on attention weights, in all layers                           |
    | `residual_dropout`  | on the output of attention and of the MLP, in all layers      |
    | `mlp_dropout`       | on the hidden units of the MLP, in all layers                 |

    Args:
        tokens: size of the vocabulary.
        length: largest number of positions.
        width: features.
        layers: number of layers.
        heads: attention heads; they divide `width`.
        tied: whether the decoder has the weight of the embedding.
    """

    def __init__(
        self, tokens: int, length: int, width: int = 128, layers: int = 4, heads: int = 4, tied: bool = True
    ) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(tokens, width), nn.Embedding(length, width)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.embedding_dropout = Dropout("embedding_dropout")
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, tokens, bias=False)
        nn.init.normal_(self.decoder.weight, std=0.02)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the next characters (B, tokens, T) for characters (B, T)."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.embedding_dropout(self.embedding(tokens) + self.positions(places))
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.decoder(self.norm(x))
        return scores.transpose(1, 2)
