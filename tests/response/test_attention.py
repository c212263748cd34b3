"""Attention in elementary operations is that of PyTorch, and has derivatives where PyTorch's has none."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.response.attention import attention
from tests.oracles import assert_close

MASKS = {
    "none": None,
    "boolean": torch.tensor([[True, False, True], [False, False, False]]),
    "added": torch.tensor([[0.5, -torch.inf, -1.0], [-torch.inf, -torch.inf, -torch.inf]], dtype=torch.float64),
}


@pytest.mark.parametrize(("mask", "causal", "scale", "shared"), [
    *itertools.product(MASKS, [False], [None, 0.7], [False, True]), ("none", True, None, False)
])  # fmt: skip
def test_attention_without_dropout_is_that_of_pytorch(mask, causal, scale, shared):
    torch.manual_seed(0)
    q = torch.randn(2, 4, 2, 6, dtype=torch.float64)
    k, v = (torch.randn(2, 2 if shared else 4, 3, width, dtype=torch.float64) for width in (6, 5))
    options = {"attn_mask": MASKS[mask], "is_causal": causal, "scale": scale, "enable_gqa": shared}
    assert_close(attention(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options), 1e-12)


def test_a_query_without_keys_has_no_nan_in_its_gradients_and_tangents():
    q = torch.randn(1, 2, 2, 6, dtype=torch.float64, requires_grad=True)
    k, v = torch.randn(2, 1, 2, 3, 6, dtype=torch.float64)

    def of(q):
        return attention(q, k, v, MASKS["boolean"])

    assert torch.autograd.gradcheck(of, q, check_forward_ad=True)


class Padded(nn.Module):
    """A causal language model for texts that are padded at their start, so that some words attend to nothing."""

    def __init__(self):
        super().__init__()
        self.words, self.qkv, self.out = nn.Embedding(9, 8), nn.Linear(8, 24), nn.Linear(8, 9)

    def forward(self, words):
        q, k, v = self.qkv(self.words(words)).chunk(3, -1)
        mask = (words[:, None, :] > 0) & torch.ones(words.shape[1], words.shape[1], dtype=torch.bool).tril()
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


class PaddedByModule(nn.Module):
    """The same with PyTorch's attention module."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(9, 8), nn.Linear(8, 9)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, words):
        x, later = self.words(words), torch.ones(words.shape[1], words.shape[1], dtype=torch.bool).triu(1)
        y, _ = self.attention(x, x, x, attn_mask=later, key_padding_mask=words == 0, need_weights=False)
        return self.out(y)


@pytest.mark.parametrize("network", [Padded, PaddedByModule], ids=["function", "module"])
def test_texts_that_are_padded_at_their_start_have_finite_derivatives(network):
    torch.manual_seed(0)
    words = torch.randint(1, 9, (12, 6))
    words[:, :2] = 0

    def loss(out, words):
        return F.cross_entropy(out[:, :-1].flatten(0, 1), words[:, 1:].flatten(), ignore_index=0)

    space = rd.HyperSpace(decay=rd.Positive(1e-4))
    task = rd.Task(space, network(), loss, (words, words), (words, words), penalty=rd.L2("decay"))
    tuner = rd.SelfTuner(task, epochs=1, batch_size=4, warmup=0, train_interval=1)
    assert tuner.coverage.share == 1.0
    before = tuner.space.lam.detach().clone()
    tuner.step()
    assert tuner.space.lam.isfinite().all()
    assert (tuner.space.lam != before).any()
