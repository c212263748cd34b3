"""Accuracy counts the right axis and the right targets, or it is left out; metrics are tried before the first step."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.training.accuracy import Accuracy, find_accuracy


def last_axis(output, target):
    """Cross-entropy of a language model: the classes are the last axis."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def targets(*shape, classes=5):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(1))


def outputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("shape", "loss", "axis"),
    [
        ((6, 5), F.cross_entropy, 1),
        ((6, 5, 3), F.cross_entropy, 1),
        ((6, 5, 3, 4), F.cross_entropy, 1),
        ((6, 3, 5), last_axis, 2),
        ((6, 3, 4, 5), last_axis, 3),
        ((6, 5, 5), F.cross_entropy, 1),  # both axes fit
        ((6, 5, 5), last_axis, 2),
        ((6, 5, 5), lambda output, target: output.mean(), None),
    ],
)
def test_the_axis_of_the_classes_is_found(shape, loss, axis):
    target = targets(*(shape[:1] + shape[2:] if axis in (1, None) else shape[:-1]))
    found = find_accuracy(outputs(*shape), target, loss)
    assert found == (None if axis is None else Accuracy(axis))
    if found is not None:
        hits, counted = found(outputs(*shape), target)
        expected = (outputs(*shape).movedim(axis, -1).argmax(-1) == target).sum()
        assert (hits.item(), counted.item()) == (expected.item(), target.numel())


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (outputs(6, 1), outputs(6, 1)),  # regression
        (outputs(6), targets(6)),  # no classes
        (outputs(6, 5), outputs(6)),  # real targets
        (outputs(6, 5), targets(6, 5)),  # several labels
        (outputs(6, 5, 3), targets(6, 4)),  # other shapes
        (outputs(6, 2), torch.ones(6, dtype=torch.bool)),
        ({"logits": outputs(6, 5)}, targets(6)),
    ],
)
def test_accuracy_is_left_out_where_it_is_not_defined(output, target):
    assert find_accuracy(output, target, F.cross_entropy) is None


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (F.cross_entropy, -100),
        (nn.CrossEntropyLoss(), -100),
        (nn.CrossEntropyLoss(ignore_index=0), 0),
        (functools.partial(F.cross_entropy, ignore_index=2), 2),
    ],
)
def test_ignored_targets_do_not_count(loss, ignored):
    output, target = outputs(6, 5, 7), targets(6, 7)
    target[:, ::2] = ignored
    hits, counted = find_accuracy(output, target, loss)(output, target)
    kept = target != ignored
    assert counted == kept.sum()
    assert hits == ((output.argmax(1) == target) & kept).sum()


class Language(nn.Module):
    """Words in, a distribution over words for each place out: (B, T, V)."""

    def __init__(self):
        super().__init__()
        self.words, self.drop, self.out = nn.Embedding(5, 8), rd.Dropout("rate"), nn.Linear(8, 5)

    def forward(self, x):
        return self.out(self.drop(self.words(x)))


def ignoring(output, target):
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=-100)


def language_task(length=3, **more):
    torch.manual_seed(0)
    x = targets(20, length)
    y = (x + 1) % 5
    y[:, 0] = -100
    y[-3:, 1:] = -100  # the batches have different numbers of targets that count
    return rd.Task(rd.HyperSpace(rate=rd.Bounded(0.1)), Language(), ignoring, (x, y), (x, y), **more)


@pytest.mark.parametrize("length", [3, 5])
def test_a_language_model_reports_the_accuracy_of_the_words_that_count(length):
    tuner = rd.SelfTuner(language_task(length), epochs=3, batch_size=6, lr=0.5, warmup=0)
    report = [*tuner.fit()][-1]
    x, y = tuner.task.valid
    with torch.no_grad():
        right = tuner.model.eval()(x).argmax(-1) == y
    assert report["valid_accuracy"] == pytest.approx((right.sum() / (y >= 0).sum()).item(), rel=1e-12)


def test_a_metric_may_take_the_place_of_accuracy():
    task = language_task(metrics={"accuracy": lambda output, target: torch.tensor(0.25)})
    assert rd.SelfTuner(task, epochs=1, batch_size=6).step()["valid_accuracy"] == 0.25


def test_a_metric_that_returns_no_number_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"`metrics\['each'\]` must return a mean \(\) or one .*, got shape \(4, 3\)"):
        rd.SelfTuner(language_task(metrics={"each": lambda output, target: output.mean(2)}), epochs=1)


def test_a_metric_that_fails_does_so_before_the_first_step():
    with pytest.raises(ZeroDivisionError):
        rd.SelfTuner(language_task(metrics={"bad": lambda output, target: 1 / 0}), epochs=1)
