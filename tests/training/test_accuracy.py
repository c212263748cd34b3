"""Accuracy counts the right axis and the right targets, or it is left out; metrics are tried before the first step."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
        (lambda output, target: F.cross_entropy(output, target, ignore_index=3), 3),
        (lambda output, target: F.nll_loss(output.log_softmax(1), target, None, None, 4), 4),
        (lambda output, target: 2 * F.cross_entropy(output.flatten(2), target.flatten(1), ignore_index=1), 1),
    ],
)
def test_ignored_targets_do_not_count(loss, ignored):
    output, target = outputs(6, 5, 7), targets(6, 7)
    target[:, ::2] = ignored
    hits, counted = find_accuracy(output, target, loss)(output, target)
    kept = target != ignored
    assert counted == kept.sum()
    assert hits == ((output.argmax(1) == target) & kept).sum()


def shifted(output, target):
    """Cross-entropy of a language model that predicts the next word."""
    return F.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def test_a_loss_of_shifted_targets_has_no_accuracy():
    assert find_accuracy(outputs(6, 3, 5), targets(6, 3), shifted) is None
    assert find_accuracy(outputs(6, 3, 5), targets(6, 3), last_axis) == Accuracy(2)


def test_one_number_for_each_target_is_no_class():
    def loss(output, target):
        return F.poisson_nll_loss(output.squeeze(-1), target.float())

    assert find_accuracy(outputs(6, 3, 1), targets(6, 3), loss) is None
    assert find_accuracy(outputs(6, 1), targets(6), lambda output, target: loss(output, target)) is None


def segmentation(output, target):
    return F.cross_entropy(output, target, ignore_index=255)


@pytest.mark.parametrize("as_loader", [False, True])
@pytest.mark.parametrize("method", ["fixed", "delta-stn"])
def test_loss_and_accuracy_of_pixels_are_those_of_the_whole_split(method, as_loader):
    torch.manual_seed(0)
    x, y = outputs(20, 2, 4, 4), targets(20, 4, 4)
    y[0] = y[5:8, :2] = y[-2:] = 255  # the last minibatch has no target that counts
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), rd.Dropout("rate"), nn.Conv2d(4, 5, 1))
    valid = DataLoader(TensorDataset(x, y), batch_size=6) if as_loader else (x, y)
    task = rd.Task(rd.HyperSpace(rate=rd.Bounded(0.1)), model, segmentation, (x[:18], y[:18]), valid)
    tuner = rd.SelfTuner(task, method, epochs=1, batch_size=9, valid_batch_size=20, warmup=0, train_interval=50)
    report = tuner.step()
    with torch.no_grad():
        output = tuner.model.eval()(x)
    kept = y != 255
    assert report["valid_loss"] == pytest.approx(segmentation(output, y).item(), rel=1e-5)
    assert report["valid_accuracy"] == ((output.argmax(1) == y) & kept).sum().item() / kept.sum().item()


def test_other_losses_are_weighed_by_examples():
    """A mean over each example's own targets has a weight of one per example."""

    def each(output, target):
        return F.cross_entropy(output, target, ignore_index=255, reduction="none").flatten(1).mean(1)

    assert not find_accuracy(outputs(6, 5, 3), targets(6, 3), each).weighs
    assert not find_accuracy(outputs(6, 5, 3), targets(6, 3), lambda o, y: 1 + F.cross_entropy(o, y)).weighs
    assert not find_accuracy(outputs(6, 5), targets(6), nn.CrossEntropyLoss(torch.ones(5))).weighs
    assert find_accuracy(outputs(6, 5), targets(6), nn.CrossEntropyLoss()).weighs


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
        loss = ignoring(tuner.model(x), y)
    assert report["valid_accuracy"] == pytest.approx((right.sum() / (y >= 0).sum()).item(), rel=1e-12)
    assert report["valid_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_metric_may_take_the_place_of_accuracy():
    task = language_task(metrics={"accuracy": lambda output, target: torch.tensor(0.25)})
    assert rd.SelfTuner(task, epochs=1, batch_size=6).step()["valid_accuracy"] == 0.25


def test_a_metric_that_returns_no_number_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"`metrics\['each'\]` must return a mean \(\) or one .*, got shape \(4, 3\)"):
        rd.SelfTuner(language_task(metrics={"each": lambda output, target: output.mean(2)}), epochs=1)


def test_a_metric_that_returns_a_text_is_refused_by_name():
    with pytest.raises(TypeError, match=r"`metrics\['text'\]` must return a number or a tensor, got str"):
        rd.SelfTuner(language_task(metrics={"text": lambda output, target: "0.5"}), epochs=1)


def test_a_metric_that_fails_does_so_before_the_first_step():
    with pytest.raises(ZeroDivisionError):
        rd.SelfTuner(language_task(metrics={"bad": lambda output, target: 1 / 0}), epochs=1)
