"""Mistakes in a corpus, or in the state that a network carries, show in one line with the rule and the value got."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.training.checks import try_out_task
from tests.training.recurrent import UNITS, WORDS, GRUModel, LSTMModel, corpus, first_state, make_task, make_tuner


def assert_refused(function, kind, message):
    with pytest.raises(kind) as refused:
        function()
    text = str(refused.value)
    assert re.search(message, text), text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("tokens", "given", "kind", "message"),
    [
        ([1, 2, 3], {}, TypeError, r"`tokens` must be a tensor \(n,\), got list"),
        (torch.zeros(50), {}, TypeError, r"`tokens` must be whole numbers, got torch.float32"),
        (torch.zeros(50, dtype=torch.bool), {}, TypeError, r"`tokens` must be whole numbers, got torch.bool"),
        (torch.zeros(2, 50).long(), {}, ValueError, r"`tokens` must have one axis, got shape \(2, 50\)"),
        (torch.zeros(0).long(), {}, ValueError, r"`len\(tokens\) // batch_size > length` must hold.* got 0 tokens"),
        (
            torch.zeros(17).long(),
            {},
            ValueError,
            r"`len\(tokens\) // batch_size > length` must hold, .* got 17 tokens in 2 streams for `length` 8",
        ),
        (torch.arange(-1, 49), {}, ValueError, r"`tokens >= 0` must hold, got -1"),
        (corpus(50), {"batch_size": 0}, ValueError, r"`batch_size` must be a whole number from 1, got 0"),
        (corpus(50), {"length": 2.5}, ValueError, r"`length` must be a whole number from 1, got 2.5"),
        (corpus(50), {"state": (torch.zeros(2), 3)}, TypeError, r"`state` must be .* nested tensors, got int in it"),
        (corpus(50), {"state": ()}, ValueError, r"`state` must hold a tensor, got none; give None to carry nothing"),
    ],
)
def test_wrong_segments_are_refused(tokens, given, kind, message):
    assert_refused(lambda: rd.Segments(tokens, **{"batch_size": 2, "length": 8, **given}), kind, message)


class OutputOnly(LSTMModel):
    def forward(self, tokens, state):
        return super().forward(tokens, state)[0]


class LayersFirst(LSTMModel):
    def forward(self, tokens, state):
        output, state = super().forward(tokens, state)
        return output, tuple(part.transpose(0, 1) for part in state)


class HiddenOnly(LSTMModel):
    def forward(self, tokens, state):
        output, (h, _) = super().forward(tokens, state)
        return output, h


class Doubled(LSTMModel):
    def forward(self, tokens, state):
        output, state = super().forward(tokens, state)
        return output, tuple(part.double() for part in state)


class InPlace(LSTMModel):
    def forward(self, tokens, state):
        output, after = super().forward(tokens, tuple(part.clone() for part in state))
        for part, new in zip(state, after, strict=True):
            part.copy_(new.detach())
        return output, state


def segments(state=None, tokens=None):
    return rd.Segments(corpus(70, 1) if tokens is None else tokens, 2, 8, state)


STATE = first_state("lstm")
SPLITS = ("train", "valid", "test")
UNKNOWN = torch.cat([corpus(60, 1), torch.tensor([WORDS + 2]), corpus(9, 2)])
LAYERED = r"`state\[0\]` of float32 \(\d, 2, 5\)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": OutputOnly}, r"`model\(inputs, state\)` must return a pair \(output, state\), got Tensor"),
        ({"model": LayersFirst}, rf"`model` must return a state like .*, got float32 \(2, \d, 5\) for {LAYERED}"),
        ({"model": HiddenOnly}, r"`model` must return a state like .*, got float32 \(\d, 2, 5\) for `state`, .*tuple"),
        ({"model": InPlace}, r"`model` must leave the state that it gets as it is, got a state .* changed in place"),
        ({"model": Doubled}, rf"`model` must return a state like .*, got float64 \(\d, 2, 5\) for {LAYERED}"),
        (
            dict.fromkeys(SPLITS, segments(tuple(part.double() for part in STATE))),
            r"`\w+` must hold a state of the type of the model, float32, got float64; convert it",
        ),
        (
            dict.fromkeys(SPLITS, segments((torch.zeros(3, UNITS), torch.zeros(3, UNITS)))),
            r"`model\(tokens, state\)` must accept the inputs of `\w+`, got tokens of int64 \(\d, 8\), a state of "
            r"float32 \(\d, 3, 5\), float32 \(\d, 3, 5\) and this error: Expected hidden",
        ),
        ({"valid": segments()}, r"all splits must carry the same state, got none for 'valid' and .* for 'train'"),
        (
            {"test": segments(first_state("gru"))},
            r"all splits must carry the same state, got float32 \(5,\) for 'test' and float32 \(2, 5\), .* for 'train'",
        ),
        (
            {"augment": rd.GaussianNoise("dropout")},
            r"`augment` must be empty for `Segments`, whose inputs are tokens, got GaussianNoise with 'train'",
        ),
        (
            {"batch": lambda batch: batch},
            r"`batch` must be None for `Segments`, which are pairs, got a function for 'train'",
        ),
        *(
            (
                {name: segments(STATE, UNKNOWN)},
                rf"`{name}` must hold tokens below 7, the number of embeddings of layer 'embedding', got 9",
            )
            for name in SPLITS
        ),
    ],
)
def test_a_task_that_does_not_fit_its_segments_is_refused(changes, message):
    changes = {name: value() if isinstance(value, type) else value for name, value in changes.items()}
    assert_refused(lambda: make_tuner(make_task(**changes)), ValueError, message)
    if "test" not in changes:
        assert_refused(lambda: try_out_task(make_task(**changes)), ValueError, message)


class Table(nn.Module):
    """An embedding that does not tell its number of words."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WORDS, UNITS))

    def forward(self, tokens):
        return F.embedding(tokens, self.weight)


def test_an_unknown_token_that_no_layer_shows_is_named_where_it_is_met():
    late = rd.Segments(torch.cat([corpus(60, 1), torch.tensor([WORDS])]), 1, 8, first_state("gru"))
    model = GRUModel()
    model.embedding = Table()
    tuner = make_tuner(make_task("gru", test=late, model=model))
    assert_refused(
        tuner.step, ValueError, r"`test` must hold tokens that the model and the loss know, got tokens up to 7 and this"
    )


def test_a_state_of_other_data_is_refused():
    state = make_tuner(make_task("gru")).state_dict()
    fewer = rd.Segments(corpus(100, 1), 3, 8, first_state("gru"))
    assert_refused(
        lambda: make_tuner(make_task("gru", train=fewer)).load_state_dict(state),
        ValueError,
        r"`state` must come from a run with the same minibatches per epoch, got 6, here 4",
    )
    streams = rd.Segments(corpus(70, 2), 1, 8, first_state("gru"))
    assert_refused(
        lambda: make_tuner(make_task("gru", valid=streams)).load_state_dict(state),
        ValueError,
        r"`state` must be one of the same streams of `valid`, got carried tensors of \[\(2, 5\)\], here \[\(1, 5\)\]",
    )
    words = GRUModel()
    words.embedding = nn.Embedding(WORDS + 1, UNITS)
    assert_refused(
        lambda: make_tuner(make_task("gru", model=words)).load_state_dict(state),
        ValueError,
        r"`state` must come from the same model, got '7×5' for 'embedding.weight', here '8×5'",
    )
