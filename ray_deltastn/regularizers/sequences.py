"""Dropout for sequences, with one rate per sequence (Gal and Ghahramani 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_deltastn.regularizers.dropout import Dropout


class VariationalDropout(Dropout):
    """Set each feature of a sequence to zero with probability p, at all its steps, and divide the others by 1 − p.

    y_t = x_t ⊙ m / (1 − p) with one mask m ~ Bernoulli(1 − p) for each sequence. Inputs (B, T, …, k), or (T, B, …, k)
    for networks with steps first. Otherwise it is like `Dropout`.

    Args:
        name: hyperparameter for p, with a domain inside [0, 1].
    """

    def mask_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the mask, (B, 1, …, k)."""
        shape = [1] * x.dim()
        shape[self.layout.axis] = x.shape[self.layout.axis]
        shape[-1] = x.shape[-1]
        return tuple(shape)


class EmbeddingDropout(Dropout):
    """Set words of a sequence to zero with probability p, wherever they occur in it, and divide the others by 1 − p.

    y_t = E[x_t] · m[x_t] / (1 − p) with m ~ Bernoulli(1 − p), one number for each word of the vocabulary and each
    sequence. It takes the place of the embedding E, which stays an ordinary layer inside it.

    Args:
        name: hyperparameter for p, with a domain inside [0, 1].
        embedding: E, a layer with `num_embeddings` words that maps indices (B, …) to features (B, …, k).

    Raises:
        TypeError: if `embedding` has no number of words, or adds words up as nn.EmbeddingBag does.
    """

    def __init__(self, name: str, embedding: nn.Module) -> None:
        super().__init__(name)
        if not isinstance(getattr(embedding, "num_embeddings", None), int) or isinstance(embedding, nn.EmbeddingBag):
            raise TypeError(
                "`embedding` must be a layer with `num_embeddings` words and features for each, such as nn.Embedding, "
                f"got {type(embedding).__name__}"
            )
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, …, k) of the words `x` (B, …), after dropout."""
        y: Tensor = self.embedding(x)
        if not self.training:
            return y
        words = self.layout.to_front(x)
        count = self.embedding.num_embeddings
        assert isinstance(count, int)
        p = self.pass_values.value(self.names[0], like=y, layout=self.layout).reshape(-1, 1)
        keep = self.pass_values.rand(len(words), count, like=y) >= p
        factor = (keep / (1 - p).clamp_min(torch.finfo(y.dtype).eps)).gather(1, words.reshape(len(words), -1))
        return y * self.layout.back(factor.view(words.shape))[..., None].to(y.dtype)
