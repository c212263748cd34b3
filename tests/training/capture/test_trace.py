"""A trace gives the numbers of the steps it was recorded from, to the bit, or is refused."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.training.capture.graphs import EAGER
from ray_deltastn.training.capture.trace import Trace
from tests.methods.started import started
from tests.training.capture.captures import LEARNED, SCHEDULES, make_tuner, parts, told


class Draws(nn.Module):
    """Leaves its layer out now and then, as Python's random numbers say."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) if random.random() < 0.8 else x


class Reads(nn.Module):
    """Does what a number in a tensor says."""

    def forward(self, x):
        return x * 2 if x.mean().item() > 0 else x


@pytest.mark.parametrize(
    ("layer", "reason"),
    [(Draws(nn.Linear(8, 8)), "it draws from Python's"), (Reads(), r"it reads numbers from a tensor \(_local_scalar")],
    ids=["draws", "reads"],
)
def test_a_step_that_hangs_on_more_than_tensors_is_refused(layer, reason):
    tuner = make_tuner("delta-stn", layer=layer, graph="on")
    with pytest.raises(RuntimeError, match="`graph` must be off, train steps cannot be captured: " + reason):
        list(tuner.fit())


@pytest.mark.parametrize(
    "options", [{"optimizer": "adam"}, {"response_optimizer": "adamw"}, {"hyper_optimizer": "adam"}]
)
def test_adam_is_refused_by_name(options):
    with pytest.raises(ValueError, match=f"`graph` must be auto or off with {next(iter(options.values()))} on a CPU"):
        make_tuner("delta-stn", graph="on", **options)


class ReadsRate(nn.Module):
    """Scales by a number that Python reads from λ, which no operation shows."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.lam = [torch.zeros(1)]  # in a list, so that it is no buffer

    def forward(self, x):
        return self.layer(x) * (1.0 + self.lam[0].tolist()[0])


def test_a_number_that_hangs_on_lambda_alone_is_found_when_lambda_moves():
    # In the warm-up, in which both shapes of minibatches are captured and compared, the number is right.
    tuner = make_tuner("delta-stn", layer=ReadsRate(nn.Identity()), graph="on", epochs=12, warmup=8)
    layer = next(m for m in tuner.model.modules() if isinstance(m, ReadsRate))
    layer.lam[:] = [tuner.space.lam.detach()]
    with pytest.raises(RuntimeError, match="train steps give other numbers when they are replayed"):
        list(tuner.fit())


TRACED = {name: settings for name, settings in SCHEDULES.items() if name != "adam"} | {
    "bf16": {"precision": "bf16"},
    "sgd": {"response_optimizer": "sgd", "antithetic": False},
}


@LEARNED
@pytest.mark.parametrize("settings", TRACED.values(), ids=TRACED)
def test_a_trace_gives_the_numbers_of_the_steps_to_the_bit(method, settings):
    if method == "fixed":
        settings = {**settings, "hyperparameters": {"dropout": [0.1, 0.2, 0.3]}}
    plain, traced = (make_tuner(method, graph=graph, epochs=12, **settings) for graph in ("off", "on"))
    assert told(plain.fit()) == told(traced.fit())
    assert {key[0] for key in traced.algorithm._captured} == {"train", *(["hyper"] * traced.method.tunes)}
    for one, other in zip(parts(plain), parts(traced), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "settings",
    [
        {"perturbations": 3, "antithetic": True, "sub_batches": 1},
        {"perturbations": 2, "antithetic": True, "sub_batches": 3},
        {"hyper_pass": "network", "response_clip": 0.1},
        {"hyper_pass": "unperturbed", "tune_scale": False, "hyper_clip": 0.5},
        {"preset": "paper", "sub_batches": 1},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_a_trace_of_other_estimators_too(settings):
    plain, traced = (make_tuner("delta-stn", graph=graph, epochs=12, **settings) for graph in ("off", "on"))
    assert told(plain.fit()) == told(traced.fit())
    assert traced.algorithm.captured
    for one, other in zip(parts(plain), parts(traced), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "method"),
    [("cifar10-resnet18", "delta-stn"), *(("fashion-cnn", m) for m in ("fixed", "stn", "centered-stn", "delta-stn"))],
)
def test_a_trace_of_a_convolutional_network_with_augmentation_too(task, method):
    found = []
    for graph in ("off", "on"):
        tuner = started(method, task, "cpu", graph=graph)
        losses = [step().item() for _ in range(EAGER + 2) for step in cycle(tuner)]
        assert not tuner.method.tunes or losses[-1] != losses[-3]
        assert graph == "off" or len(tuner.algorithm._captured) == len(cycle(tuner))
        found.append((losses, parts(tuner)))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(one, other)


def cycle(tuner):
    """One train step and, if there is one, one hyper step, as functions."""

    def train():
        tuner.model.train()
        return tuner.algorithm.train_step(*tuner.train.next())

    def hyper():
        tuner.model.eval()
        return tuner.algorithm.hyper_step(*tuner.valid.next())

    return [train, hyper] if tuner.method.tunes else [train]


class Keeps(nn.Module):
    """Remembers something of the batch before, outside of its buffers."""

    def __init__(self):
        super().__init__()
        self.mean = 0.0

    def forward(self, x):
        found = x + 0.1 * self.mean
        if self.training:
            self.mean = x.detach().mean(0)
        return found


class Lists(nn.Module):
    """Reads numbers behind PyTorch's back."""

    def forward(self, x):
        return x * (1.0 + 0.1 * float(np.tanh(x.detach().numpy().mean())))


class Turns(nn.Module):
    """Complex numbers, conjugated."""

    def forward(self, x):
        z = torch.complex(x, x.tanh())
        return (z * z.conj()).real + z.conj().imag


class Watches(nn.Module):
    """Updates statistics that nobody reads."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        self.norm(x)
        return x


@pytest.mark.parametrize("layer", [Turns(), Watches(), nn.Dropout(0.3), nn.RMSNorm(8)], ids=lambda m: type(m).__name__)
def test_a_trace_of_unusual_layers(layer):
    plain, traced = (make_tuner("centered-stn", layer=layer, graph=graph, epochs=12) for graph in ("off", "on"))
    assert told(plain.fit()) == told(traced.fit())
    for one, other in zip(parts(plain), parts(traced), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("layer", [Keeps(), Lists(), nn.LayerNorm(8)], ids=lambda m: type(m).__name__)
def test_a_replay_that_is_not_the_step_is_refused_the_first_time(layer):
    tuner = make_tuner("delta-stn", layer=layer, graph="on", epochs=12)
    with pytest.raises(RuntimeError, match="train steps give other numbers when they are replayed"):
        list(tuner.fit())


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: F.binary_cross_entropy_with_logits(o, torch.eye(3)[y]),
        lambda o, y: F.cross_entropy(o[:, torch.arange(2, -1, -1)], y, reduction="none"),
        lambda o, y: F.cross_entropy(o, y, weight=torch.tensor([1.0, 2.0, 3.0])),
        lambda o, y: F.cross_entropy(o, y) * torch.tensor(1.0).add_(1.0),
    ],
    ids=["binary", "index", "weighted", "constant"],
)
def test_a_trace_of_unusual_losses(loss):
    plain, traced = (make_tuner("delta-stn", loss=loss, graph=graph, epochs=12) for graph in ("off", "on"))
    assert told(plain.fit()) == told(traced.fit())


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: o.square().sum(1)[y != 0].mean(),
        lambda o, y: F.cross_entropy(o, y) * len(torch.bincount(y[:3])),
        lambda o, y: F.cross_entropy(o, y) * torch.unique_consecutive(y).shape[0],
    ],
    ids=["choice", "counts", "runs"],
)
def test_losses_whose_shapes_hang_on_the_data_are_refused(loss):
    with pytest.raises(RuntimeError, match="train steps cannot be captured: it reads numbers from a tensor"):
        list(make_tuner("delta-stn", loss=loss, graph="on").fit())


def test_sparse_gradients_are_refused():
    task = sparse_task()
    with pytest.raises(RuntimeError, match="train steps cannot be captured: it has sparse tensors"):
        list(rd.SelfTuner(task, graph="on", epochs=8, batch_size=16, momentum=0.0).fit())


def sparse_task():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (48, 5), generator=generator)
    model = nn.Sequential(nn.Embedding(20, 6, sparse=True), rd.Dropout("dropout"), nn.Flatten(), nn.Linear(30, 3))
    space = rd.HyperSpace(dropout=rd.Bounded(0.3, low=0.0, high=0.9))
    return rd.Task(space=space, model=model, loss=F.cross_entropy, train=(x, x[:, 0] % 3), valid=(x, x[:, 0] % 3))


def use_momentum(tuner):
    tuner.optimizers.weights.param_groups[0]["momentum"] = 0.9


def clip(tuner):
    steps = getattr(tuner.algorithm, "steps", tuner.algorithm)
    steps.options = replace(steps.options, clip_grad=0.01)


def exchange_a_weight(tuner):
    tuner.model[0].weight.data = tuner.model[0].weight.detach() + 0.1


def exchange_statistics(tuner):
    tuner.model[4].running_mean = torch.ones(8)


@pytest.mark.parametrize("change", [use_momentum, clip, exchange_a_weight, exchange_statistics])
def test_what_changes_in_the_middle_is_captured_anew(change):
    found = []
    for graph in ("off", "on"):
        tuner = make_tuner("delta-stn", graph=graph, epochs=12, momentum=0.0)
        reports = [tuner.step() for _ in range(6)]
        change(tuner)
        found.append(told([*reports, *tuner.fit()]))
    assert found[0] == found[1]


def test_a_schedule_of_constants_is_captured_once(monkeypatch):
    made = []
    original = Trace.__init__
    monkeypatch.setattr(Trace, "__init__", lambda self, *a, **k: (made.append(self), original(self, *a, **k))[1])
    rows = [0.05 * n for n in range(12)]
    plain, traced = (
        make_tuner("fixed", graph=graph, epochs=12, hyperparameters={"dropout": rows}) for graph in ("off", "on")
    )
    assert told(plain.fit()) == told(traced.fit())
    assert len(made) == len(traced.algorithm._captured)


def test_a_run_with_a_trace_resumes_to_the_bit():
    plain, first, second = (make_tuner("delta-stn", graph=graph, epochs=9) for graph in ("off", "on", "on"))
    expected = told(plain.fit())
    for _ in range(5):
        first.step()
    second.load_state_dict(first.state_dict())
    assert told(second.fit()) == expected[5:]


def test_a_trace_forgets_what_nobody_needs_and_keeps_what_acts():
    weights, x = torch.ones(3, requires_grad=True), torch.arange(3.0)
    generator = torch.Generator().manual_seed(0)

    def run():
        torch.rand(2, generator=generator)  # the generator moves on
        (x * 5).sum()  # for nobody
        (gradient,) = torch.autograd.grad((weights * x).square().sum(), weights)
        with torch.no_grad():
            weights.sub_(gradient)
        return gradient.sum()

    with Trace() as trace:
        result = run()
    play = trace.player(result)
    after, state = weights.detach().clone(), generator.get_state()
    again = play().clone()
    traced, moved = weights.detach().clone(), generator.get_state()
    with torch.no_grad():
        weights.copy_(after)
    generator.set_state(state)
    assert torch.equal(run(), again)
    assert torch.equal(weights.detach(), traced)
    assert torch.equal(generator.get_state(), moved)
