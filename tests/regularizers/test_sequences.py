"""Dropout for sequences: what the masks share, and that rates per sequence train."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.regularizers import PassValues
from ray_deltastn.response.layout import Layout

B, T, K, WORDS = 4, 6, 8, 12


def bound(layer, values, per="example", seed=0):
    space = rd.HyperSpace(rate=rd.Bounded(0.3, per=per))
    pass_values = PassValues(space, torch.Generator().manual_seed(seed))
    pass_values.values = {"rate": torch.as_tensor(values, dtype=torch.float64)}
    layer.bind(pass_values)
    return layer.train()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_feature_is_dropped_at_all_steps_of_a_sequence(axis):
    layer = rd.VariationalDropout("rate")
    layer.layout = Layout(axis)
    rates = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    bound(layer, rates)
    x = torch.ones(B, T, K, dtype=torch.float64)
    y = layer(x if axis == 0 else x.transpose(0, 1))
    factor = y if axis == 0 else y.transpose(0, 1)
    assert torch.equal(factor, factor[:, :1].expand_as(factor))
    assert torch.equal(factor[0], torch.ones(T, K, dtype=torch.float64))
    assert not factor[3].any()
    for own, rate in zip(factor[1:3], rates[1:3], strict=True):
        assert {round(float(f), 12) for f in own.unique()} <= {0.0, round(float(1 / (1 - rate)), 12)}


@pytest.mark.parametrize("axis", [0, 1])
def test_a_word_is_dropped_wherever_it_occurs_in_a_sequence_and_only_there(axis):
    layer = rd.EmbeddingDropout("rate", nn.Embedding(WORDS, K).double())
    nn.init.ones_(layer.embedding.weight)
    layer.layout = Layout(axis)
    bound(layer, torch.tensor([0.0, 0.5, 0.5, 1.0]))
    words = torch.randint(0, WORDS, (B, 50))
    y = layer(words if axis == 0 else words.T)
    factor = y if axis == 0 else y.transpose(0, 1)
    assert torch.equal(factor, factor[..., :1].expand_as(factor))
    fates = []
    for own, said in zip(factor[..., 0], words, strict=True):
        fate = {int(w): {round(float(f), 12) for f in own[said == w].unique()} for w in said.unique()}
        assert all(len(one) == 1 for one in fate.values())
        fates.append({word: one.pop() for word, one in fate.items()})
    assert set(fates[0].values()) == {1.0}
    assert set(fates[1].values()) == {0.0, 2.0}
    assert set(fates[3].values()) == {0.0}
    both = fates[1].keys() & fates[2].keys()
    assert any(fates[1][word] != fates[2][word] for word in both)


def test_the_mean_is_kept():
    layer = bound(rd.EmbeddingDropout("rate", nn.Embedding(2000, 1).double()), torch.tensor(0.3))
    nn.init.ones_(layer.embedding.weight)
    assert layer(torch.arange(2000).expand(20, -1)).mean().item() == pytest.approx(1.0, abs=0.02)
    layer = bound(rd.VariationalDropout("rate"), torch.tensor(0.3))
    assert layer(torch.ones(200, 3, 200)).mean().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("layer", [rd.VariationalDropout("rate"), rd.EmbeddingDropout("rate", nn.Embedding(WORDS, K))])
def test_evaluation_changes_nothing(layer):
    x = torch.randint(0, WORDS, (B, T)) if hasattr(layer, "embedding") else torch.randn(B, T, K)
    plain = layer.embedding(x) if hasattr(layer, "embedding") else x
    assert torch.equal(layer.eval()(x), plain)


def test_a_layer_that_is_no_embedding_is_refused():
    with pytest.raises(TypeError, match=r"`embedding` must be a layer with `num_embeddings` words.*got Linear"):
        rd.EmbeddingDropout("rate", nn.Linear(3, 4))
    with pytest.raises(TypeError, match=r"and features for each, such as nn.Embedding, got EmbeddingBag"):
        rd.EmbeddingDropout("rate", nn.EmbeddingBag(3, 4))


class Reader(nn.Module):
    """An LSTM with both kinds of dropout."""

    def __init__(self):
        super().__init__()
        self.words = rd.EmbeddingDropout("word", nn.Embedding(WORDS, K))
        self.before, self.after = rd.VariationalDropout("input"), rd.VariationalDropout("output")
        self.layer, self.out = nn.LSTM(K, K, batch_first=True), nn.Linear(K, WORDS)

    def forward(self, x):
        y, _ = self.layer(self.before(self.words(x)))
        return self.out(self.after(y)).transpose(1, 2)


@pytest.mark.parametrize("method", ["delta-stn", "stn"])
def test_a_language_model_tunes_all_its_rates(method):
    torch.manual_seed(0)
    x = torch.randint(0, WORDS, (24, T + 1))
    space = rd.HyperSpace(**{name: rd.Bounded(0.2) for name in ("word", "input", "output")})
    task = rd.Task(space, Reader(), F.cross_entropy, (x[:, :-1], x[:, 1:]), (x[:, :-1], x[:, 1:]))
    tuner = rd.SelfTuner(task, method, epochs=2, batch_size=8, warmup=0, train_interval=1, lr=0.1)
    assert not tuner.coverage.uncovered
    before = tuner.space.lam.detach().clone()
    list(tuner.fit())
    assert (tuner.space.lam != before).all()
