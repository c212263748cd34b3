"""Captured steps take the same way as those that run as they are."""

import gc
import itertools
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.training.capture import recorders
from ray_deltastn.training.capture.graphs import EAGER, GraphedSteps
from ray_deltastn.training.capture.recorders import CudaRecorder, Recording, TraceRecorder
from ray_deltastn.tune.config import ExperimentConfig
from tests.training import recurrent
from tests.training.capture.captures import LEARNED, SCHEDULES, make_tuner, parts, told


class Pretender:
    """Where there is no GPU: a capture that is the step itself, and knows what a graph would have frozen."""

    compares = False

    def __init__(self):
        self.steps = None
        self.error = None
        self.records = self.replays = self.eagers = 0

    def eager(self, run):
        self.eagers += 1
        return run()

    def record(self, run):
        if self.error is not None:
            raise self.error
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
        """Numbers and buffers that a graph of a train step (training mode) or hyper step keeps, as they are now."""
        train = (self.steps.weights_optimizer, self.steps.response_optimizer)
        optimizers = train if self.steps.objective.model.training else (self.steps.hyper_optimizer,)
        found = []
        for optimizer in optimizers:
            if optimizer is not None:
                found += [group["lr"] for group in optimizer.param_groups]
                found += [t.data_ptr() for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
        row = self.steps.objective.constant
        return [*found, None if row is None else row.data_ptr()]  # its values change in place


FORBIDDEN = RuntimeError("operation not permitted when stream is capturing\nand more")


def pretend(tuner, must=True):
    """Let the steps of a run be captured by a pretender, and return it."""
    recorder = Pretender()
    tuner.algorithm = GraphedSteps(tuner.algorithm, recorder, must)
    recorder.steps = tuner.algorithm.steps
    return recorder


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
    pretend(usual, must=False).error = FORBIDDEN
    with pytest.warns(rd.RunWarning, match=r"`graph` is off: train steps cannot be captured: operation not permitted"):
        assert told(usual.fit()) == told(plain.fit())
    assert not usual.algorithm.captured
    strict = make_tuner("delta-stn")
    pretend(strict).error = FORBIDDEN
    with pytest.raises(RuntimeError, match=r"`graph` must be off, train steps cannot be captured: .*capturing$"):
        list(strict.fit())


def test_an_error_that_says_nothing_is_named():
    tuner = make_tuner("delta-stn")
    pretend(tuner).error = AssertionError()
    with pytest.raises(RuntimeError, match=r"`graph` must be off, train steps cannot be captured: AssertionError$"):
        list(tuner.fit())


def test_a_kind_of_step_that_cannot_be_captured_leaves_the_other_to_be():
    plain, tuner = (make_tuner("delta-stn", batch_size=11, warmup=0, hyper_decay=1.0) for _ in range(2))
    recorder = pretend(tuner, must=False)
    assert not tuner.algorithm.captured
    tuner.step()
    assert {key[0] for key in tuner.algorithm._captured} == {"train"}
    assert not tuner.algorithm.captured
    recorder.error = FORBIDDEN
    with pytest.warns(rd.RunWarning, match="`graph` is off: hyper steps cannot be captured"):
        tuner.step()
    recorder.error = None
    list(tuner.fit())
    assert {key[0] for key in tuner.algorithm._captured} == {"train"}
    assert recorder.records == 2  # the one from before drew from the state that the generators had
    assert not tuner.algorithm.captured
    assert told([tuner.last_report]) == told(list(plain.fit())[-1:])


class Stand(MagicMock):
    """Stands in for a graph."""


@pytest.fixture
def no_gpu(monkeypatch):
    """Stand-ins for what a recorder of graphs calls, as one mock that notes the calls in order."""
    calls = MagicMock()
    calls.graph_pool_handle.side_effect = itertools.count().__next__
    names = ("graph", "graph_pool_handle", "current_stream", "set_stream")
    for name in names:
        monkeypatch.setattr(torch.cuda, name, getattr(calls, name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Stand)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, getattr(calls, name))
    monkeypatch.setattr(recorders, "_stream", MagicMock())
    monkeypatch.setattr(recorders, "_ABANDONED", [])
    return calls


def test_a_capture_that_breaks_leaves_the_generators_the_stream_and_the_allocator_as_before(monkeypatch, no_gpu):
    generators = [MagicMock(), MagicMock()]
    monkeypatch.setattr(torch.cuda, "default_generators", (None, generators[0]))
    no_gpu.graph.return_value.__exit__.side_effect = FORBIDDEN
    recorder = CudaRecorder(torch.device("cuda:1"), generators[1:])
    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(MagicMock())
    for generator in generators:
        generator.graphsafe_set_state.assert_called_once_with(generator.clone_state())
    no_gpu.set_stream.assert_called_once_with(no_gpu.current_stream.return_value)
    (graph,) = recorders._ABANDONED
    graph.reset.assert_called_once_with()
    no_gpu._cuda_endAllocateToPool.assert_called_once_with(1, recorder.pool)
    no_gpu._cuda_releasePool.assert_called_once_with(1, recorder.pool)


def test_a_capture_that_pytorch_has_closed_is_not_closed_again(monkeypatch, no_gpu):
    monkeypatch.setattr(torch.cuda, "default_generators", (MagicMock(),))
    no_gpu.graph.return_value.__exit__.side_effect = FORBIDDEN
    no_gpu._cuda_endAllocateToPool.side_effect = RuntimeError("endAllocatePool: not currently recording to mempool_id")
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaRecorder(torch.device("cuda:0"), []).record(MagicMock())
    no_gpu._cuda_releasePool.assert_not_called()


def test_graphs_share_a_pool_as_long_as_one_of_them_lives(no_gpu):
    recorder = CudaRecorder(torch.device("cuda:0"), [])
    pools = []
    kept = []
    for _ in range(2):
        kept.append(recorder.record(MagicMock()))
        pools.append(recorder.pool)
    kept.clear()
    no_gpu.reset_mock()  # it has noted the graphs
    gc.collect()
    recorder.record(MagicMock())
    pools.append(recorder.pool)
    assert pools[0] == pools[1] != pools[2]


def test_options_of_optimisers_are_captured_anew():
    tuner = make_tuner("delta-stn", epochs=12, hyper_decay=1.0)
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


@pytest.mark.parametrize(("optimizer", "kind"), [("weights", "train"), ("response", "train"), ("hyper", "hyper")])
def test_a_learning_rate_drops_the_captures_of_the_steps_that_use_it(optimizer, kind):
    tuner = make_tuner("delta-stn", epochs=12, hyper_decay=1.0)
    pretend(tuner)
    for _ in range(8):
        tuner.step()
    before = dict(tuner.algorithm._captured)
    rates = {"weights": [0.04], "response": [0.04], "hyper": [0.04, 0.04]}[optimizer]
    for group, rate in zip(getattr(tuner.optimizers, optimizer).param_groups, rates, strict=True):
        group["lr"] = rate
    tuner.optimizers.set_hyper_share = lambda share: None  # it would put the rate of λ back
    for _ in range(2):
        tuner.step()
    after = tuner.algorithm._captured
    assert {key[0] for key in before} == {"train", "hyper"}
    assert all((after[key] is captured) == (key[0] != kind) for key, captured in before.items())


def test_only_so_many_shapes_are_captured(monkeypatch):
    monkeypatch.setattr("ray_deltastn.training.capture.graphs.SHAPES", 1)
    plain, tuner = (make_tuner("stn", hyper_decay=1.0) for _ in range(2))
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
        (
            {"graph": "on", "method": "ift"},
            "`graph` must be auto or off for 'ift', which keeps its train steps, got 'on'",
        ),
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
    with pytest.raises(
        ValueError, match="`graph` must be auto or off unless the device is cpu or cuda, got 'on' for device mps"
    ):
        rd.Settings(graph="on").captures(torch.device("mps"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@LEARNED
def test_graphs_of_a_gpu_take_the_way_of_its_steps(method):
    plain, captured = (make_tuner(method, "cuda", graph=graph, epochs=20) for graph in ("off", "on"))
    assert isinstance(captured.algorithm, GraphedSteps)
    for one, other in zip(told(plain.fit()), told(captured.fit()), strict=True):
        for name, value in one.items():
            assert other[name] == (pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value)
    assert captured.algorithm.captured


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_capture_that_breaks_on_a_gpu_leaves_the_run_as_it_is():
    def loss(output, y):
        return F.cross_entropy(output, y) * (1.0 + 0.0 * output.sum().item())

    plain, usual = (make_tuner("delta-stn", "cuda", loss=loss, graph=graph, epochs=20) for graph in ("off", "auto"))
    with pytest.warns(rd.RunWarning, match="`graph` is off: train steps cannot be captured"):
        found = told(usual.fit())
    for one, other in zip(told(plain.fit()), found, strict=True):
        assert other["valid_loss"] == pytest.approx(one["valid_loss"], rel=1e-4)


class Halves(nn.Module):
    """A network of two inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.dropout, self.out = nn.Linear(2, 8), rd.Dropout("dropout"), nn.Linear(8 + 4, 3)

    def forward(self, left, right):
        return {"logits": self.out(torch.cat([self.dropout(torch.relu(self.left(left))), right], 1))}


def test_nested_minibatches_are_captured():
    x = torch.randn(44, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    pair = {"left": x[:, :2], "right": x[:, 2:]}, {"y": (y,), "shared": x}

    def run():
        task = rd.Task(
            space=rd.HyperSpace(dropout=rd.Bounded(0.3)),
            model=Halves(),
            loss=lambda output, target: F.cross_entropy(output["logits"], target["y"][0]),
            train=pair,
            valid=pair,
        )
        return rd.SelfTuner(task, epochs=7, batch_size=16, lr=0.05, warmup=1, train_interval=2, hyper_decay=1.0)

    plain, captured = run(), run()
    captured.algorithm = GraphedSteps(captured.algorithm, TraceRecorder(), must=True)
    assert told(plain.fit()) == told(captured.fit())
    assert captured.algorithm.captured


@pytest.mark.parametrize(("recorded", "kind"), [("pretended", "gru"), ("traced", "gru"), ("traced", "lstm")])
@LEARNED
def test_captured_steps_carry_state(method, recorded, kind):
    def run():
        return recurrent.make_tuner(recurrent.make_task(kind), method, epochs=4, hyper_decay=1.0)

    plain, captured = run(), run()
    if recorded == "pretended":
        pretend(captured)
    else:
        captured.algorithm = GraphedSteps(captured.algorithm, TraceRecorder(), must=True)
    assert told(plain.fit()) == told(captured.fit())
    for one, other in zip(parts(plain), parts(captured), strict=True):
        assert torch.equal(one, other)
    for stream in ("train", "valid"):
        states = [getattr(tuner, stream).state_dict()["state"] for tuner in (plain, captured)]
        assert all(map(torch.equal, *states))
    compared = {key[0] for key, one in captured.algorithm._captured.items() if one.compared}
    assert compared == ({"train"} if method == "fixed" else {"train", "hyper"})
