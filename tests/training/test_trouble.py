"""A diverged run names the step and the module whose numbers were first not finite."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.training.trouble import Losses

#: The first number of the example that is the trouble.
MARK = 50.0
BATCH = 8


class Odd(nn.Module):
    """The identity, which fails for marked examples, in the way `how`."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, h, marked):
        if self.how == "forward":
            return h + torch.where(marked, math.nan, 0.0)
        if self.how == "overflow":
            return h + torch.where(marked, math.inf, 0.0)
        if self.how == "backward":  # the square root of 0 is finite, its gradient is not
            return h + 0.0 * (h * ~marked).abs().sqrt()
        return BadTangent.apply(h, marked) if self.how == "tangent" else h


class BadTangent(torch.autograd.Function):
    """The identity, whose tangent is NaN for marked examples."""

    @staticmethod
    def forward(x, marked):
        return x.clone()

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_forward(inputs[1])

    @staticmethod
    def jvp(context, tangent, _):
        return tangent + torch.where(context.saved_tensors[0], math.nan, 0.0)

    @staticmethod
    def backward(context, gradient):
        return gradient, None


class Network(nn.Module):
    """Two layers with the trouble in between."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.odd, self.drop, self.out = nn.Linear(4, 5), Odd(how), rd.Dropout("rate"), nn.Linear(5, 3)

    def forward(self, x):
        marked = x[:, :1] > MARK / 2
        h = self.drop(self.odd(torch.tanh(self.first(x)), marked))
        return self.out(h + torch.where(marked, math.nan, 0.0) if self.how == "between" else h)


def loss(output, y):
    """Cross entropy, which is NaN for a batch with the target 9."""
    return F.cross_entropy(output, y.clamp(max=2)) + torch.where((y == 9).any(), math.nan, 0.0)


FOUND = {
    "forward": "the output of layer 'odd' (Odd)",
    "overflow": "the output of layer 'odd' (Odd)",
    "backward": "the gradient in the output of layer 'first' (Linear)",
    "tangent": "the output in the tangent of layer 'odd' (Odd)",
    "between": "the inputs of layer 'out' (Linear)",
    "inputs": "the inputs of the minibatch",
    "loss": "the loss",
}


def tuner_of(how, split="train", method="delta-stn", **options):
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    y = x[:, :3].argmax(1)
    marked, targets = x.clone(), y.clone()
    marked[17, 0] = MARK
    if how == "inputs":
        marked[17, 2] = math.nan
    if how == "loss":
        targets[17] = 9
    splits = {"train": (x, y), "valid": (x, y), split: (marked, targets)}
    task = rd.Task(rd.HyperSpace(rate=rd.Bounded(0.2)), Network(how), loss, **splits)
    given = {"epochs": 6, "batch_size": BATCH, "valid_batch_size": 40, "lr": 1e-3, "warmup": 0, "train_interval": 2}
    return rd.SelfTuner(task, method, **given, **options)


def place_of(tuner, stream):
    """Number of the minibatch with the mark in the first pass, from 1."""
    again = type(stream)((stream.x, stream.y), BATCH, "again", torch.device("cpu"), stream.seed)
    for number in range(1, len(stream) + 1):
        x, _ = again.next()
        if bool((x[:, 0] > MARK / 2).any()):
            return number
    raise AssertionError


@pytest.mark.parametrize("options", [{}, {"steps_per_report": 1}, {"graph": "off"}], ids=["epoch", "steps", "eager"])
@pytest.mark.parametrize("method", ["delta-stn", "stn", "fixed"])
@pytest.mark.parametrize("how", [how for how in FOUND if how != "tangent"])
def test_a_bad_training_example_is_found(how, method, options):
    tuner = tuner_of(how, method=method, **options)
    step = place_of(tuner, tuner.train)
    last = [*tuner.fit()][-1]
    assert last["diverged"]
    assert last["stop_reason"].endswith(f"; first not finite: {FOUND[how]}, in train step {step}")


def test_captured_steps_are_looked_at_too():
    # Shapes are captured after three eager steps, so the mark must come later.
    for seed in range(20):
        tuner = tuner_of("forward", method="fixed", graph="on", seed=seed)
        if place_of(tuner, tuner.train) == 5:
            break
    last = [*tuner.fit()][-1]
    assert tuner.algorithm.captured
    assert last["stop_reason"].endswith(f"; first not finite: {FOUND['forward']}, in train step 5")


@pytest.mark.parametrize("method", ["delta-stn", "fixed"])
def test_a_bad_validation_example_is_found(method):
    tuner = tuner_of("forward", "valid", method)
    before = {name: value.clone() for name, value in tuner.model.state_dict().items()}
    last = [*tuner.fit()][-1]
    where = "in the hyper step after train step" if method == "delta-stn" else "in the evaluation on `valid`"
    assert f"; first not finite: {FOUND['forward']}, {where}" in last["stop_reason"]
    if method == "fixed":
        assert all(value.isfinite().all() for value in tuner.model.state_dict().values())
        assert any(not torch.equal(before[name], value) for name, value in tuner.model.state_dict().items())


def test_a_bad_tangent_is_found():
    tuner = tuner_of("tangent")
    step = place_of(tuner, tuner.train)
    last = [*tuner.fit()][-1]
    assert last["diverged"]
    assert last["stop_reason"].endswith(f"; first not finite: {FOUND['tangent']}, in train step {step}")


def test_too_large_steps_name_a_parameter_and_leave_the_run_as_it_was():
    tuner = tuner_of("none", method="fixed")
    tuner.step()
    with torch.no_grad():
        tuner.model.first.weight[0, 0] = math.nan
    before = {name: value.clone() for name, value in tuner.model.state_dict().items()}
    state, where = tuner.generator.get_state(), tuner.train.state_dict()
    tuner.trouble.reset()
    assert tuner.trouble.found(tuner.steps, tuner.best.weights) == "; first not finite: the parameter 'first.weight'"
    assert all(torch.equal(a.nan_to_num(), before[name].nan_to_num()) for name, a in tuner.model.state_dict().items())
    assert torch.equal(tuner.generator.get_state(), state)
    assert tuner.train.state_dict() == where
    assert not any(m._forward_pre_hooks for m in tuner.model.modules())


@pytest.mark.parametrize("index", [0, 1023, 1024, 2500, None])
def test_the_first_bad_loss_of_many(index):
    losses = Losses()
    for number in range(2600):
        losses.add(torch.tensor(math.inf if index is not None and number >= index else 1.0))
    assert len(losses) == 2600
    assert losses.first_bad() == index
