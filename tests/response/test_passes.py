"""Attention, recurrent layers, layers without a rule and owned parameters: in runs, and what a run says of them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

import ray_deltastn as rd
from ray_deltastn.response import Response, linearised_forward
from ray_deltastn.response.kinds import _registered, kind_of
from ray_deltastn.response.linearise import rules
from ray_deltastn.response.passes import leaf
from tests.networks import Columns, OwnNorm, parametrised
from tests.oracles import assert_close, dense_prediction, grad, randomise
from tests.response.attached import MODES, H, predict

CLASSES, WIDTH, STEPS, EXAMPLES = 3, 8, 4, 24


class Classifier(nn.Module):
    """A body between a layer and an output layer, for inputs (B, T, 8)."""

    def __init__(self, body, width=WIDTH):
        super().__init__()
        self.first, self.body = nn.Linear(WIDTH, WIDTH), body
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(width, CLASSES)

    def forward(self, x):
        y = self.body(self.first(x))
        y = y[0] if isinstance(y, tuple) else y
        return self.out(self.drop(torch.tanh(y)).mean(1))


class Scaled(nn.Module):
    """A class token, positions and a scale, owned by a module with layers."""

    def __init__(self):
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 5, WIDTH))
        self.gamma, self.layer = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return x + self.gamma * self.layer(x)


class Table(nn.Module):
    """A table of biases that is indexed and has no place for a batch, as in Swin's windows."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Parameter(torch.randn(7, 2)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        bias = self.table[torch.arange(STEPS)].permute(1, 0).sum(0)
        return self.layer(x) + bias[:, None]


class Windows(nn.Module):
    """A projection that is used by a function on windows, which are folded into the batch, as in torchvision's Swin."""

    def __init__(self):
        super().__init__()
        self.project, self.layer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        windows = x.unflatten(1, (2, -1)).flatten(0, 1)
        y = torch.tanh(F.linear(windows, self.project.weight, self.project.bias))
        return self.layer(y.unflatten(0, (len(x), -1)).flatten(1, 2))


class TiedByFunction(nn.Module):
    """An embedding of directions whose table is also the weight of a projection."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.layer(self.table(x.argmax(-1)) + F.linear(x, self.table.weight))


class Norm(nn.Module):
    """Normalisation of another package with statistics of the batch, and a buffer for them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x):
        mean = x.mean((0, 1)) if self.training else self.mean
        return self.scale * (x - mean)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


BODIES = {
    "attention": Attention,
    "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True),
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH, num_layers=2, dropout=0.2, batch_first=True),
    "gru": lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
    "owned": Scaled,
    "function": Windows,
    "tied-by-function": TiedByFunction,
    "other-packages": lambda: nn.Sequential(Columns(WIDTH, WIDTH), OwnNorm(WIDTH)),
    "weight-norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral-norm": lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(WIDTH, WIDTH), "weight", amount=0.5),
}
#: What one displacement for each example leaves out.
MISSING = {"table": (Table, {"body.table"}), "statistics": (Norm, {"body.scale"})}


class Doubling(nn.Linear):
    """A layer of another package."""

    def forward(self, x):
        return 2 * F.linear(x, self.weight, self.bias)


class Flipped(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


def tuner_for(body, method="delta-stn", per="example", width=WIDTH, **options):
    torch.manual_seed(0)
    model = Classifier(body(), width).double()
    x = torch.randn(EXAMPLES, STEPS, WIDTH, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (EXAMPLES,))
    space = rd.HyperSpace(rate=rd.Bounded(0.2, per=per), decay=rd.Positive(1e-3, per=per))
    task = rd.Task(space, model, F.cross_entropy, (x, y), (x, y), penalty=rd.L2("decay"))
    return rd.SelfTuner(task, method, epochs=2, batch_size=4, warmup=0, **options)


@pytest.mark.parametrize("per", ["example", "batch"])
@pytest.mark.parametrize("method", ["delta-stn", "stn"])
@pytest.mark.parametrize("body", BODIES)
def test_a_run_moves_all_weights_and_reports_what_it_exports(body, method, per):
    tuner = tuner_for(BODIES[body], method, per, lr=0.05)
    assert not tuner.coverage.uncovered
    assert tuner.coverage.share == 1
    report = [*tuner.fit()][-1]
    assert all(tuner.response.U[slot.start : slot.stop].any() for slot in tuner.response.slots)
    model = Classifier(BODIES[body]()).double().eval()
    model.load_state_dict(tuner.export())
    x, y = tuner.task.valid
    with torch.no_grad():
        assert F.cross_entropy(model(x), y).item() == pytest.approx(report["valid_loss"], rel=1e-12)


@pytest.mark.parametrize("body", ["lstm", "owned", "other-packages", "tied-by-function"])
def test_captured_steps_give_the_numbers_of_eager_steps(body):
    runs = {}
    for graph in ("off", "on"):
        tuner = tuner_for(BODIES[body], graph=graph, optimizer="sgd", lr=0.05)
        list(tuner.fit())
        runs[graph] = [tuner.space.lam.detach(), *tuner.model.parameters(), *tuner.response.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(runs["off"], runs["on"], strict=True))


@pytest.mark.parametrize("per", ["example", "batch"])
@pytest.mark.parametrize("body", [body for body in BODIES if body not in ("lstm", "gru")])
def test_both_passes_are_exact(body, per):
    tuner = tuner_for(BODIES[body], per=per)
    response, model = tuner.response, tuner.model.eval()
    with torch.no_grad():
        response.U.normal_(0.0, 0.1)
    x, delta = tuner.task.valid[0][:4], torch.randn(4 if per == "example" else 1, 2, dtype=torch.float64)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    with torch.no_grad(), rules(response):
        base = model(x)
        tangents = linearised_forward(model, x, response, delta) - base
        with response.displaced(delta):
            moved = model(x)
        for row, own, tangent, out in zip(delta.expand(4, 2), x, tangents, moved, strict=True):
            folded = response.fold(row)
            along = {name: folded[name].detach() - w for name, w in weights.items()}
            f = lambda w, own=own: functional_call(model, w, (own[None],))[0]  # noqa: E731
            assert_close(tangent, torch.func.jvp(f, (weights,), (along,))[1], scale=base.norm().item())
            assert_close(out, f({name: w.detach() for name, w in folded.items()}))


@pytest.mark.parametrize("name", MISSING)
def test_what_cannot_have_a_displacement_per_example_is_left_out_and_works_with_one_for_the_batch(name):
    body, missing = MISSING[name]
    each, one = tuner_for(body), tuner_for(body, per="batch")
    assert set(each.coverage.uncovered) == missing
    assert not one.coverage.uncovered
    x, _ = each.task.valid
    for tuner, rows in ((each, 4), (one, 1)):
        response, model = tuner.response, tuner.model.eval()
        with torch.no_grad():
            for slot in response.slots:
                response.U[slot.start : slot.stop].normal_(0.0, 0.1)
        delta = torch.randn(rows, 2, dtype=torch.float64)
        with torch.no_grad(), response.displaced(delta):
            moved = model(x[:4])
        for row, own, out in zip(delta.expand(4, 2), x[:4], moved, strict=True):
            assert_close(out, functional_call(model, response.fold(row), (own[None],))[0])


def test_a_model_is_unchanged_outside_of_displaced_passes():
    model = Classifier(Scaled())
    model.body.layer = parametrizations.weight_norm(model.body.layer)
    model.more = nn.LSTM(2, 2)
    before = [{**m.__dict__} for m in model.modules()]
    tables = [{**m._parameters} for m in model.modules()]
    response = randomise(Response(model, H))
    inside = []

    def stop():
        with response.displaced(torch.ones(4, H)):
            inside.extend(["forward" in model.more.__dict__, not isinstance(model.body.token, nn.Parameter)])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        stop()
    assert inside == [True, True]
    response.release()
    for module, attributes, table in zip(model.modules(), before, tables, strict=True):
        assert module.__dict__.keys() == attributes.keys()
        assert all(module._parameters[name] is p for name, p in table.items())
    copy.deepcopy(model)


@MODES
def test_parametrised_weights_are_exact(linearised):
    torch.manual_seed(0)
    model, x = parametrised().double().eval(), torch.randn(3, 2, 3, dtype=torch.float64)
    response = randomise(Response(model, H))
    response.elementary = True
    with torch.no_grad():
        response.U.mul_(0.2)
    delta = torch.randn(3, H, dtype=torch.float64, requires_grad=True)
    value, oracle = (
        predict(model, response, delta, x, linearised),
        dense_prediction(model, response, delta, x, linearised),
    )
    assert_close(value, oracle)
    probe = torch.randn_like(oracle)
    inputs = [response.U, delta]
    for one, other in zip(grad((value * probe).sum(), inputs), grad((oracle * probe).sum(), inputs), strict=True):
        assert_close(one, other, rtol=1e-8)


def test_the_statistics_of_a_parametrisation_move_in_plain_steps_only():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Linear(3, 2)).double()
    response = randomise(Response(model, H))
    before = model[0].parametrizations.weight[0]._u.clone()
    linearised_forward(model, torch.randn(4, 3, dtype=torch.float64), response, torch.randn(4, H))
    assert torch.equal(before, model[0].parametrizations.weight[0]._u)
    model(torch.randn(4, 3, dtype=torch.float64))
    assert not torch.equal(before, model[0].parametrizations.weight[0]._u)


def test_a_norm_by_hook_that_changes_itself_is_refused_by_name():
    coverage = Response(nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)), nn.Linear(3, 2)), H).coverage
    assert "parametrizations.spectral_norm" in coverage.uncovered["0.weight_orig"]


def test_copies_of_a_parameter_that_are_too_large_are_refused_by_name(monkeypatch):
    monkeypatch.setattr("ray_deltastn.response.replaced.LARGEST", 100)
    response = Response(Scaled(), H)
    with pytest.raises(ValueError, match=r"copies of 'positions' must have at most 100 .*, got 160 for 4"):
        linearised_forward(response.model, torch.randn(4, 4, WIDTH), response, torch.randn(4, H))


class Standardised(nn.Conv1d):
    """A convolution of another package with standardised rows, as in networks without normalisation."""

    def forward(self, x):
        w = self.weight.flatten(1)
        w = (w - w.mean(1, keepdim=True)) / (w.var(1, keepdim=True) + 1e-5).sqrt()
        return F.conv1d(x, w.view_as(self.weight), self.bias)


@pytest.mark.parametrize(
    ("body", "axis"),
    [
        (lambda: Doubling(WIDTH, 128), -1),
        (lambda: parametrizations.weight_norm(nn.Linear(WIDTH, 128)), -1),
        (lambda: nn.Sequential(Flipped(), Standardised(WIDTH, 128, 1), Flipped()), 1),
        (lambda: Columns(WIDTH, 128), None),
        (lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, 128)), None),
    ],
    ids=["other-package", "weight-norm", "standardised", "rows-are-inputs", "spectral-norm"],
)
def test_a_large_layer_whose_rows_are_its_outputs_needs_no_copies(body, axis, monkeypatch):
    tuner = tuner_for(body, width=128)
    assert not tuner.coverage.uncovered
    response, model = tuner.response, tuner.model.eval()
    (layer,) = response.uses.leaves()
    assert response.uses.row_axes[layer] == axis
    with torch.no_grad():
        response.U.normal_(0.0, 0.1)
    x, delta = tuner.task.valid[0][:4], torch.randn(4, 2, dtype=torch.float64)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    if axis is not None:
        monkeypatch.setattr(leaf, "LARGEST", 0)
    with torch.no_grad():
        found = linearised_forward(model, x, response, delta) - model(x)
    for row, own, tangent in zip(delta, x, found, strict=True):
        folded = response.fold(row)
        along = {name: folded[name].detach() - w for name, w in weights.items()}
        f = lambda w, own=own: functional_call(model, w, (own[None],))[0]  # noqa: E731
        with rules(response):
            assert_close(tangent, torch.func.jvp(f, (weights,), (along,))[1])


def test_copies_that_are_too_large_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(leaf, "LARGEST", 100)
    model = nn.Sequential(Columns(8, 8))
    response = Response(model, H)
    with pytest.raises(ValueError, match=r"Columns must have at most 100 elements, got 288 for 4 .*register_kind"):
        linearised_forward(model, torch.randn(4, 8), response, torch.randn(4, H))


# --- rules for layers of other packages ------------------------------------------------------------------------------


@pytest.fixture
def registry():
    yield
    _registered.clear()


@MODES
def test_a_registered_kind_gives_what_copies_give(linearised, registry):
    torch.manual_seed(0)
    model = nn.Sequential(Columns(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, delta = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, H, dtype=torch.float64)
    rd.register_kind(Columns, lambda layer, x, weight: x @ weight, rows="feature")
    assert kind_of(model[0]) is _registered[0]
    response = randomise(Response(model, H))
    (weight,) = (slot for slot in response.slots if slot.name == "0.weight")
    assert weight.stop - weight.start == 4
    value = predict(model, response, delta, x, linearised)
    for row, one, out in zip(delta, x, value, strict=True):
        folded = {name: p.detach() for name, p in response.fold(row).items()}
        weights = {name: p.detach() for name, p in model.named_parameters()}
        if linearised:
            along = {name: folded[name] - weights[name] for name in weights}
            f = lambda w, one=one: functional_call(model, w, (one[None],))[0]  # noqa: E731
            base, tangent = torch.func.jvp(f, (weights,), (along,))
            assert_close(out, base + tangent)
        else:
            assert_close(out, functional_call(model, folded, (one[None],))[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, abs), "`layer` must be a class of modules, got 3"),
        ((nn.Linear, 3), "`apply` must be a function, got 3"),
        ((nn.Linear, abs, "rows", "column"), "`rows` must be output, feature or element, got 'column'"),
        ((nn.Linear, abs, "place", "front"), "`place` must be features or channels, got 'front'"),
    ],
)
def test_a_kind_that_cannot_be_registered_is_refused(arguments, message, registry):
    layer, apply, *more = arguments
    with pytest.raises((TypeError, ValueError), match=message):
        rd.register_kind(layer, apply, **dict([more] if more else []))
    assert not _registered
