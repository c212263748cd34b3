"""Captured steps take the same way as those that run as they are."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.graphs import EAGER, GraphedSteps, Recording
from ray_deltastn.tape import Tape
from ray_deltastn.tune.config import ExperimentConfig
from tests.methods.test_waiting import started

LEARNED = pytest.mark.parametrize("method", ["fixed", "stn", "centered-stn", "delta-stn"])


class Pretender:
    """Where there is no GPU: a capture that is the step itself, and knows what a graph would have frozen."""

    compares = False

    def __init__(self):
        self.steps = None
        self.fails = False
        self.records = self.replays = self.eagers = 0

    def eager(self, run):
        self.eagers += 1
        return run()

    def record(self, run):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.records += 1
        frozen, replaced = self.constants(), []

        def replay():
            assert self.constants() == frozen
            # As a graph does: the next result goes where the last one was.
            replaced.append(run())
            replaced[0].copy_(replaced[-1])
            self.replays += 1
            return replaced[0]

        return Recording(replay)

    def constants(self):
        """Numbers and buffers that a graph keeps, as they are now."""
        optimizers = (self.steps.weights_optimizer, self.steps.response_optimizer, self.steps.hyper_optimizer)
        found = []
        for optimizer in optimizers:
            if optimizer is not None:
                found += [group["lr"] for group in optimizer.param_groups]
                found += [t.data_ptr() for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
        row = self.steps.objective.constant
        return [*found, None if row is None else row.tolist()]


def make_tuner(method, device="cpu", layer=None, loss=F.cross_entropy, **settings):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(44, 6, generator=generator)
    y = x[:, :3].argmax(1)
    torch.manual_seed(0)
    layer = nn.Identity() if layer is None else copy.deepcopy(layer)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), layer, rd.Dropout("dropout"), nn.BatchNorm1d(8), nn.Linear(8, 3))
    space = rd.HyperSpace(dropout=rd.Bounded(0.3, low=0.0, high=0.9), decay=rd.Positive(1e-3))
    task = rd.Task(
        space=space, model=model, loss=loss, train=(x, y), valid=(x, y), penalty=[rd.L2("decay")]
    )  # 44 examples: the last of three minibatches is smaller
    given = {"epochs": 6, "batch_size": 16, "lr": 0.05, "hyper_lr": 0.05, "warmup": 1, "train_interval": 2, **settings}
    return rd.SelfTuner(task, method=method, device=device, **given)


def pretend(tuner, must=True):
    """Let the steps of a run be captured by a pretender, and return it."""
    plain, recorder = tuner.algorithm, Pretender()
    options = {
        name: getattr(plain, name) for name in ("entropy_weight", "response_fraction", "tune_scale", "clip_grad")
    }
    optimizers = (plain.weights_optimizer, plain.response_optimizer, plain.hyper_optimizer)
    tuner.algorithm = GraphedSteps(plain.objective, *optimizers, recorder=recorder, must=must, **options)
    recorder.steps = tuner.algorithm
    return recorder


def told(reports):
    return [{k: v for k, v in report.items() if not k.startswith("seconds/")} for report in reports]


SCHEDULES = {
    "constant": {},
    "step": {"schedule": {"name": "step", "step_size": 2, "gamma": 0.5}},
    "adam": {"optimizer": "adam", "hyper_optimizer": "adam", "clip_grad": 0.5},
}


@LEARNED
@pytest.mark.parametrize("settings", SCHEDULES.values(), ids=SCHEDULES)
def test_captured_steps_are_the_steps_to_the_bit(method, settings):
    if method == "fixed":
        settings = {**settings, "hyperparameters": {"dropout": [0.1, 0.2, 0.3]}}
    plain, captured = make_tuner(method, **settings), make_tuner(method, **settings)
    recorder = pretend(captured)
    assert told(plain.fit()) == told(captured.fit())
    for one, other in zip(plain.model.state_dict().values(), captured.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    # Of eight hyper steps two see the smaller minibatch: too few for a graph of their own.
    hyper, uncaptured = (0, 0) if method == "fixed" else (8, EAGER + 2)
    assert recorder.eagers + recorder.replays == 18 + hyper
    assert recorder.eagers == 2 * EAGER + uncaptured
    assert recorder.replays > recorder.records > 0


def test_a_loaded_state_is_captured_anew():
    first = make_tuner("delta-stn")
    for _ in range(4):
        first.step()
    state = first.state_dict()
    second = make_tuner("delta-stn")
    recorder = pretend(second)
    for _ in range(4):
        second.step()
    before = recorder.records
    second.load_state_dict(state)
    assert told(second.fit()) == told(first.fit())
    assert recorder.eagers > 2 * EAGER
    assert recorder.records >= before


def test_a_step_that_cannot_be_captured_runs_as_it_is_or_says_so():
    plain, usual = make_tuner("delta-stn"), make_tuner("delta-stn")
    pretend(usual, must=False).fails = True
    with pytest.warns(rd.RunWarning, match=r"`graph` is off: train steps cannot be captured: operation not permitted"):
        assert told(usual.fit()) == told(plain.fit())
    strict = make_tuner("delta-stn")
    pretend(strict).fails = True
    with pytest.raises(RuntimeError, match=r"`graph` must be off, train steps cannot be captured: .*capturing$"):
        list(strict.fit())


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


def test_options_of_optimisers_are_captured_anew():
    tuner = make_tuner("delta-stn", epochs=12)
    recorder = pretend(tuner)
    for _ in range(4):
        tuner.step()
    before = recorder.records
    tuner.step()
    assert recorder.records == before
    tuner.optimizers.weights.param_groups[0]["momentum"] = 0.5
    for _ in range(3):  # as they are at first: optimisers may make new buffers
        tuner.step()
    assert recorder.records > before


def test_only_so_many_shapes_are_captured(monkeypatch):
    monkeypatch.setattr("ray_deltastn.graphs.SHAPES", 1)
    plain, tuner = make_tuner("stn"), make_tuner("stn")
    recorder = pretend(tuner)
    assert told(plain.fit()) == told(tuner.fit())
    assert {key[0] for key in tuner.algorithm._captured} == {"train", "hyper"}
    assert len(tuner.algorithm._captured) == recorder.records == 2


def test_yaml_may_write_on_and_off(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text("task: digits\ntrain: {epochs: 1, graph: off}\n")
    assert [rd.Settings(graph=word).graph for word in (True, False)] == ["on", "off"]
    assert rd.Settings(**ExperimentConfig.read(path, []).train).graph == "off"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"graph": "on", "method": "ift"}, "`graph` must be auto or off for 'ift', whose steps look back, got 'on'"),
        ({"graph": "yes"}, "`graph` must be one of auto, on, off, got 'yes'"),
    ],
)
def test_graphs_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        rd.Settings(**settings).captures(torch.device("cpu"))


def test_methods_that_look_back_are_not_captured():
    cuda = torch.device("cuda")
    assert rd.Settings(method="delta-stn", graph="auto").captures(cuda)
    assert not rd.Settings(method="ift", graph="auto").captures(cuda)
    assert not rd.Settings(method="delta-stn").captures(cuda)
    with pytest.raises(ValueError, match="`graph` must be auto or off for 'unrolled'"):
        rd.Settings(method="unrolled", graph="on").captures(cuda)


def test_other_devices_have_none():
    assert not rd.Settings(graph="auto").captures(torch.device("mps"))
    with pytest.raises(ValueError, match="`graph` must be auto or off but on cpu and cuda, got 'on' for device mps"):
        rd.Settings(graph="on").captures(torch.device("mps"))


# --- tapes -----------------------------------------------------------------------------------------------------------


@LEARNED
@pytest.mark.parametrize("settings", [*SCHEDULES.values(), {"precision": "bf16"}], ids=[*SCHEDULES, "bf16"])
def test_a_tape_gives_the_numbers_of_the_steps_to_the_bit(method, settings):
    if method == "fixed":
        settings = {**settings, "hyperparameters": {"dropout": [0.1, 0.2, 0.3]}}
    plain, taped = (make_tuner(method, graph=graph, epochs=12, **settings) for graph in ("off", "on"))
    assert told(plain.fit()) == told(taped.fit())
    assert {key[0] for key in taped.algorithm._captured} == {"train", *(["hyper"] * taped.method.tunes)}
    for one, other in zip(parts(plain), parts(taped), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("task", "method"),
    [("cifar10-resnet18", "delta-stn"), *(("fashion-cnn", m) for m in ("fixed", "stn", "centered-stn", "delta-stn"))],
)
def test_a_tape_of_a_convolutional_network_with_augmentation_too(task, method):
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


def parts(tuner):
    response = [] if tuner.response is None else tuner.response.parameters()
    return [*tuner.model.state_dict().values(), *response, tuner.space.lam, tuner.space.raw_scale]


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
def test_a_tape_of_unusual_layers(layer):
    plain, taped = (make_tuner("centered-stn", layer=layer, graph=graph, epochs=12) for graph in ("off", "on"))
    assert told(plain.fit()) == told(taped.fit())
    for one, other in zip(parts(plain), parts(taped), strict=True):
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
    ],
    ids=["binary", "index", "weighted"],
)
def test_a_tape_of_unusual_losses(loss):
    plain, taped = (make_tuner("delta-stn", loss=loss, graph=graph, epochs=12) for graph in ("off", "on"))
    assert told(plain.fit()) == told(taped.fit())


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


@pytest.mark.parametrize("name", ["momentum", "clip_grad"])
def test_what_changes_in_the_middle_is_captured_anew(name):
    found = []
    for graph in ("off", "on"):
        tuner = make_tuner("delta-stn", graph=graph, epochs=12, momentum=0.0)
        reports = [tuner.step() for _ in range(6)]
        if name == "momentum":
            tuner.optimizers.weights.param_groups[0]["momentum"] = 0.9
        else:
            tuner.algorithm.clip_grad = 0.01
        found.append(told([*reports, *tuner.fit()]))
    assert found[0] == found[1]


def test_a_run_with_a_tape_resumes_to_the_bit():
    plain, first, second = (make_tuner("delta-stn", graph=graph, epochs=9) for graph in ("off", "on", "on"))
    expected = told(plain.fit())
    for _ in range(5):
        first.step()
    second.load_state_dict(first.state_dict())
    assert told(second.fit()) == expected[5:]


def test_a_tape_forgets_what_nobody_needs_and_keeps_what_acts():
    weights, x = torch.ones(3, requires_grad=True), torch.arange(3.0)
    generator = torch.Generator().manual_seed(0)

    def run():
        torch.rand(2, generator=generator)  # the generator moves on
        (x * 5).sum()  # for nobody
        (gradient,) = torch.autograd.grad((weights * x).square().sum(), weights)
        with torch.no_grad():
            weights.sub_(gradient)
        return gradient.sum()

    with Tape() as tape:
        result = run()
    play = tape.player(result)
    after, state = weights.detach().clone(), generator.get_state()
    again = play().clone()
    taped, moved = weights.detach().clone(), generator.get_state()
    with torch.no_grad():
        weights.copy_(after)
    generator.set_state(state)
    assert torch.equal(run(), again)
    assert torch.equal(weights.detach(), taped)
    assert torch.equal(generator.get_state(), moved)
    assert not any("mul" in line.text and "5.0" in line.text for line in tape._lines)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@LEARNED
def test_graphs_of_a_gpu_take_the_way_of_its_steps(method):
    plain, captured = (make_tuner(method, "cuda", graph=graph, epochs=20) for graph in ("off", "on"))
    assert isinstance(captured.algorithm, GraphedSteps)
    for one, other in zip(told(plain.fit()), told(captured.fit()), strict=True):
        for name, value in one.items():
            assert other[name] == (pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value)
    assert captured.algorithm._captured
