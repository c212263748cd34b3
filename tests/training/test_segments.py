"""Segments of a corpus: what a minibatch holds, how state is carried, and exact positions."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ray_deltastn as rd
from ray_deltastn.training.segments import SegmentStream
from tests.oracles import NoSync
from tests.training.recurrent import LSTMModel, corpus, first_state, make_task, make_tuner
from tests.training.runs import assert_same_reports, assert_same_tensors, from_bytes, tensors_of, to_bytes
from tests.training.runs import without_seconds as plain

CPU = torch.device("cpu")


def test_minibatches_are_the_parallel_streams_cut_in_order():
    tokens = torch.arange(47)  # two streams of 23 tokens, 22 of which have a target
    stream = SegmentStream(rd.Segments(tokens, 2, 8), "train", CPU)
    assert len(stream) == 3
    for n in range(6):
        x, y = stream.next()
        start = 8 * (n % 3)
        expected = torch.stack([tokens[:23], tokens[23:46]])[:, start : min(start + 8, 22)]
        assert torch.equal(x, expected)
        assert torch.equal(y, expected + 1)
    assert [x.shape[1] for x, _ in stream.in_order()] == [8, 8, 6]


def test_sizes_may_be_numbers_of_numpy():
    segments = rd.Segments(torch.arange(101), np.int64(2), np.int32(20))
    assert (type(segments.batch_size), type(segments.length), len(segments)) == (int, int, 3)


@pytest.mark.parametrize(("count", "segments"), [(17, 2), (18, 3), (9, 1)])
def test_a_segment_without_a_target_is_dropped(count, segments):
    stream = SegmentStream(rd.Segments(torch.arange(count), 1, 8), "train", CPU)
    assert len(list(stream.in_order())) == len(stream) == segments


def test_state_is_filled_in_place_at_the_beginning_of_a_pass():
    first = (torch.ones(2), {"c": torch.zeros(3, 1)})
    stream = SegmentStream(rd.Segments(torch.arange(40), 2, 8, first), "train", CPU)
    (_, (h, rest)), _ = stream.next()
    h.fill_(5.0)
    (_, (again, _)), _ = stream.next()
    assert again is h
    assert torch.equal(h, torch.full((2, 2), 5.0))
    stream.next()
    (_, (again, other)), _ = stream.next()  # the second pass
    assert stream.pass_number == 1
    assert again is h
    assert other["c"] is rest["c"]
    assert torch.equal(h, torch.ones(2, 2))
    assert rest["c"].shape == (2, 3, 1)


def test_first_examples_are_whole_segments_at_the_first_state():
    stream = SegmentStream(rd.Segments(torch.arange(50), 1, 8, torch.ones(3)), "train", CPU)
    (x, state), y = stream.first(5)
    assert torch.equal(x, torch.arange(40).view(5, 8))
    assert torch.equal(y, x + 1)
    assert torch.equal(state, torch.ones(5, 3))
    assert len(stream.first(100)[1]) == 6


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("method", ["fixed", "delta-stn", "centered-stn", "stn"])
def test_broken_run_is_bit_identical_to_the_unbroken(method, kind):
    unbroken = make_tuner(make_task(kind), method, steps_per_report=4)
    expected, saved = [], []
    for report in unbroken.fit():
        expected.append(plain(report))
        saved.append(to_bytes(unbroken.state_dict()))
    for number in (1, 2):  # in the middle of a pass of both splits
        resumed = make_tuner(make_task(kind), method, steps_per_report=4)
        resumed.load_state_dict(from_bytes(saved[number - 1]))
        assert_same_reports([plain(report) for report in resumed.fit()], expected[number:])
        assert_same_tensors(tensors_of(resumed), tensors_of(unbroken))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_evaluation_is_the_mean_over_tokens_of_one_long_pass(kind):
    tuner = make_tuner(make_task(kind), epochs=1)
    (report,) = tuner.fit()
    model = tuner.release().eval()
    for split, streams in (("valid", 2), ("test", 1)):
        tokens = getattr(tuner.task, split).tokens
        whole = tokens[: len(tokens) // streams * streams].view(streams, -1)
        state = SegmentStream(rd.Segments(tokens, streams, 8, first_state(kind)), "test", CPU).first(streams)[0][1]
        with torch.no_grad():
            output, _ = model(whole[:, :-1], state)
            loss = F.cross_entropy(output.double(), whole[:, 1:])
        assert math.isclose(report[f"{split}_loss"], loss, rel_tol=1e-6)
        assert math.isclose(report[f"{split}_accuracy"], (output.argmax(1) == whole[:, 1:]).double().mean())


def test_evaluation_leaves_the_states_of_training_as_they_are():
    tuner = make_tuner(steps_per_report=3)
    tuner.step()
    kept = [[t.clone() for t in stream.state_dict()["state"]] for stream in (tuner.train, tuner.valid)]
    tuner.scores.valid_scores(-1)
    tuner.response_size()
    tuner.sensitivity()
    for stream, before in zip((tuner.train, tuner.valid), kept, strict=True):
        assert all(map(torch.equal, stream.state_dict()["state"], before))


def test_segments_without_state_give_tokens_alone():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(7, 7)
            self.dropout = rd.Dropout("dropout")

        def forward(self, tokens):
            return self.dropout(self.table(tokens)).transpose(1, 2)

    splits = {name: rd.Segments(corpus(60, 1), 2, 8) for name in ("train", "valid", "test")}
    reports = list(make_tuner(make_task(model=Plain(), **splits), epochs=8, lr=1.0).fit())
    assert reports[-1]["valid_loss"] < reports[0]["valid_loss"]


def test_perplexity_and_bits_are_those_of_the_mean_token():
    metrics = {"perplexity": rd.Perplexity(), "bits": rd.BitsPerCharacter()}
    tuner = make_tuner(make_task(metrics=metrics), epochs=2, monitor="valid_perplexity", monitor_mode="min")
    for report in tuner.fit():
        model = copy.deepcopy(tuner.model).eval()
        for split, streams in (("valid", 2), ("test", 1)):
            assert list(report).index(f"{split}_perplexity") + 1 == list(report).index(f"{split}_bits")
            tokens = getattr(tuner.task, split).tokens
            whole = tokens[: len(tokens) // streams * streams].view(streams, -1)
            state = tuple(part.expand(streams, -1, -1) for part in first_state("lstm"))
            with torch.no_grad():
                log = model(whole[:, :-1], state)[0].double().log_softmax(1)
            of_targets = log.gather(1, whole[:, None, 1:])
            geometric = of_targets.exp().flatten().log().mean().exp()
            assert math.isclose(report[f"{split}_perplexity"], 1 / geometric, rel_tol=1e-6)
            assert math.isclose(report[f"{split}_bits"], -(of_targets / math.log(2)).mean(), rel_tol=1e-6)
    assert tuner.best.report["valid_perplexity"] == min(tuner.history()["valid_perplexity"])


def test_perplexity_of_a_hopeless_model_is_infinite():
    assert rd.Perplexity()(1000.0) == math.inf


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_refit_trains_on_the_tokens_of_both_splits(kind):
    table = {"dropout": 0.3, "decay": 1e-3}
    options = {"epochs": 2, "lr": 0.2, "seed": 4}
    found = rd.refit(make_task(kind), table, **options)
    task = make_task(kind)
    tokens = torch.cat([task.train.tokens, task.valid.tokens])
    task.train = rd.Segments(tokens, 3, 8, first_state(kind))
    tuner = rd.SelfTuner(task, "fixed", hyperparameters=table, **options)
    list(tuner.fit())
    assert_same_tensors(found, tuner.export())


def test_sensitivity_begins_each_segment_at_the_state_before_it():
    tuner = make_tuner(epochs=2)
    reports = list(tuner.fit())
    table = tuner.sensitivity()
    center = table[table["offset"] == 0.0]
    assert center["loss"].to_numpy() == pytest.approx(reports[-1]["valid_loss"], rel=1e-6)


class NaNAfterwards(LSTMModel):
    """A model whose state is NaN from some call in training on."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, tokens, state):
        output, state = super().forward(tokens, state)
        self.calls -= self.training
        factor = math.nan if self.training and self.calls < 0 else 1.0
        return output * factor, tuple(part * factor for part in state)


def test_a_diverged_run_ends_with_a_reason():
    tuner = make_tuner(make_task(model=NaNAfterwards(20)), epochs=4)
    *_, last = tuner.fit()
    assert last["diverged"]
    assert last["valid_loss"] == math.inf
    assert "first not finite" in last["stop_reason"]


@pytest.mark.parametrize("count", [67, 65])  # the last segment is shorter, or all are equal
def test_a_metric_over_the_split_gets_each_token_with_its_output(count):
    metrics = {"over": rd.over_split(lambda output, target: F.cross_entropy(output, target))}
    valid = rd.Segments(corpus(2 * count, 2), 2, 8, first_state("lstm"))
    (report,) = make_tuner(make_task(valid=valid, metrics=metrics), epochs=1).fit()
    assert math.isclose(report["valid_over"], report["valid_loss"], rel_tol=1e-6)


@pytest.mark.parametrize("method", ["fixed", "stn", "centered-stn", "delta-stn"])
def test_a_cycle_has_no_synchronising_call(method):
    tuner = make_tuner(method=method, epochs=20, warmup_steps=0)
    tuner.model.train()
    for _ in range(2):  # they make the buffers of the optimisers
        tuner._train_step()
    with NoSync():
        for _ in range(6):  # a new pass too
            tuner._train_step()
