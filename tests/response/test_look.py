"""Networks whose layers do not have the batch in front, or whose weights are used elsewhere, are right or say so.

Oracle: float64, evaluation mode, U ~ N(0, 0.1); the tangent of the linearised pass against `torch.func.jvp` of the
network without hooks along fold(δ) − w₀, one example at a time; the displaced pass against `functional_call` there.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp

import ray_deltastn as rd
from ray_deltastn.response import linearised_forward

WORDS, CLASSES = 40, 7


class Positions(nn.Module):
    """Word and position embeddings, as in GPT-2: the positions' output has no batch axis."""

    def __init__(self, positions=6):
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, 8), nn.Embedding(positions, 8)
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        places = torch.arange(x.shape[1], device=x.device)
        return self.out(self.drop(torch.tanh(self.words(x) + self.positions(places)))).mean(1)


class SequenceFirst(nn.Module):
    """Layers get (time, batch, features)."""

    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, 8), nn.LayerNorm(8)
        self.middle, self.drop, self.out = nn.Linear(8, 8), rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        y = self.norm(self.words(x.T))
        return self.out(self.drop(torch.tanh(self.middle(y))).mean(0))


class Folded(nn.Module):
    """Parts of each example are in the batch axis; `blocks` puts the parts of all examples behind each other."""

    def __init__(self, blocks=False):
        super().__init__()
        self.blocks = blocks
        self.words, self.middle = nn.Embedding(WORDS, 8), nn.Linear(16, 8)
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        y = self.words(x).unflatten(1, (-1, 2)).flatten(2)  # (B, T/2, 16)
        y = (y.transpose(0, 1) if self.blocks else y).reshape(-1, 16)
        y = self.drop(torch.tanh(self.middle(y)))
        y = y.unflatten(0, (-1, len(x))).mean(0) if self.blocks else y.unflatten(0, (len(x), -1)).mean(1)
        return self.out(y)


class Functional(nn.Module):
    """The table of the embedding is also the output weight, without a layer."""

    def __init__(self):
        super().__init__()
        self.words, self.middle, self.drop = nn.Embedding(WORDS, 8), nn.Linear(8, 8), rd.Dropout("rate")

    def forward(self, x):
        return F.linear(self.drop(torch.tanh(self.middle(self.words(x).mean(1)))), self.words.weight)


class Reordered(nn.Module):
    """The first layer sees the examples in another order."""

    def __init__(self):
        super().__init__()
        self.words, self.first, self.drop = nn.Embedding(WORDS, 8), nn.Linear(8, 8), rd.Dropout("rate")
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x):
        y = self.words(x).mean(1)
        return self.out(self.drop(torch.tanh(self.first(y.flip(0))).flip(0)))


class Holder(nn.Module):
    """A table that belongs to a layer which is never called, as in T5."""

    def __init__(self):
        super().__init__()
        self.shared, self.words = nn.Embedding(WORDS, 8), nn.Embedding(WORDS, 8)
        self.words.weight = self.shared.weight
        self.idle = nn.Linear(8, 8)
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(self.drop(torch.tanh(self.words(x).mean(1))))


class MixedUse(nn.Module):
    """One layer, called with the batch in front and with positions only."""

    def __init__(self):
        super().__init__()
        self.words, self.both, self.drop = nn.Embedding(WORDS, 8), nn.Linear(8, 8), rd.Dropout("rate")
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x):
        bias = self.both(torch.eye(8, dtype=self.both.weight.dtype)[: x.shape[1]])
        return self.out(self.drop(torch.tanh(self.both(self.words(x)) + bias)).mean(1))


NETWORKS = {
    "positions": (Positions, set()),
    "sequence-first": (SequenceFirst, set()),
    "folded": (Folded, set()),
    "folded-in-blocks": (lambda: Folded(blocks=True), set()),
    "functional": (Functional, set()),
    "reordered": (Reordered, {"first.weight", "first.bias"}),
    "holder": (Holder, {"idle.weight", "idle.bias"}),
    "mixed-use": (MixedUse, {"both.weight", "both.bias"}),
}
#: What is missing with one displacement for the whole batch.
SHARED = {"holder": {"idle.weight", "idle.bias"}}


def tuner_of(name, method="delta-stn", per="example", batch=4, **options):
    torch.manual_seed(0)
    make, _ = NETWORKS[name]
    model = make().double()
    outputs = WORDS if name == "functional" else CLASSES
    x, y = torch.randint(0, WORDS, (24, 4)), torch.randint(0, outputs, (24,))
    space = rd.HyperSpace(rate=rd.Bounded(0.2, per=per), decay=rd.Positive(1e-3, per=per))
    task = rd.Task(space, model, F.cross_entropy, (x, y), (x, y), penalty=rd.L2("decay"))
    return rd.SelfTuner(task, method, epochs=2, batch_size=batch, warmup=0, **options), x


def randomised(tuner):
    with torch.no_grad():
        tuner.response.U.normal_(0.0, 0.1)
        for slot in set(tuner.response._every) - set(tuner.response.slots):
            tuner.response.U[slot.start : slot.stop] = 0.0
    return tuner.response


def errors(tuner, x, rows):
    """Relative errors of the tangent and of the displaced network, over the examples."""
    response, model = randomised(tuner), tuner.model.eval()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    delta = torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = linearised_forward(model, x, response, delta) - model(x)
        with response.displaced(delta):
            displaced = model(x)
        tangents, moved = [], []
        for row, one in zip(delta.expand(len(x), 2), x, strict=True):
            folded = response.fold(row)
            along = {n: folded.get(n, w) - w for n, w in weights.items()}
            tangents.append(jvp(lambda w, one=one: functional_call(model, w, (one[None],))[0], (weights,), (along,))[1])
            moved.append(functional_call(model, {**weights, **folded}, (one[None],))[0])
    return [
        ((one - torch.stack(other)).norm() / torch.stack(other).norm()).item()
        for one, other in ((found, tangents), (displaced, moved))
    ]


# A batch of four positions, of which there are as many as examples, was silently wrong before; so were others.
@pytest.mark.parametrize("batch", [1, 2, 4, 5])
@pytest.mark.parametrize("per", ["example", "batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_both_passes_are_exact(name, per, batch):
    tuner, x = tuner_of(name, per=per)
    missing = NETWORKS[name][1] if per == "example" else SHARED.get(name, set())
    assert set(tuner.coverage.uncovered) == missing
    assert max(errors(tuner, x[:batch], batch if per == "example" else 1)) < 1e-12


@pytest.mark.parametrize("method", ["delta-stn", "centered-stn", "stn"])
@pytest.mark.parametrize("per", ["example", "batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_runs_train_and_report_what_they_export(name, per, method):
    tuner, x = tuner_of(name, method, per, lr=0.05)
    report = [*tuner.fit()][-1]
    weights = tuner.export()
    model = NETWORKS[name][0]().double().eval()
    model.load_state_dict(weights)
    x, y = tuner.task.valid
    with torch.no_grad():
        assert F.cross_entropy(model(x), y).item() == pytest.approx(report["valid_loss"], rel=1e-12)


def test_a_parameter_without_response_is_left_alone_by_penalties_fold_and_export():
    tuner, _ = tuner_of("holder", "stn", lr=0.05)
    idle = tuner.model.idle.weight.detach().clone()
    list(tuner.fit())
    rows = [slot for slot in tuner.response._every if slot.name.startswith("idle")]
    assert len(rows) == 2
    assert all(bool((tuner.response.U[slot.start : slot.stop] == 0).all()) for slot in rows)
    lam = tuner.space.lam.detach()
    assert "idle.weight" not in tuner.response.fold(lam)
    torch.testing.assert_close(tuner.export()["idle.weight"], tuner.model.idle.weight.detach())
    assert not torch.equal(idle, tuner.model.idle.weight)  # the penalty is a penalty on w₀ all the same


@torch.library.custom_op("deltastn_tests::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


double.register_fake(torch.empty_like)
double.register_autograd(lambda context, gradient: 2 * gradient)


class Custom(nn.Module):
    """A custom operator with a rule for backward and none for forward mode."""

    def __init__(self, around):
        super().__init__()
        self.around = around
        self.first, self.drop, self.out = nn.Linear(4, 8), rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        y = torch.tanh(self.first(x))
        return self.out(self.drop(double(y) + (y if self.around else 0.0)))


@pytest.mark.parametrize("around", [False, True])
def test_an_operation_that_loses_its_tangent_is_refused_by_name_and_works_without_linearisation(around):
    def tuner(method):
        torch.manual_seed(0)
        x, y = torch.randn(24, 4, dtype=torch.float64), torch.randint(0, CLASSES, (24,))
        space = rd.HyperSpace(rate=rd.Bounded(0.2))
        task = rd.Task(space, Custom(around).double(), F.cross_entropy, (x, y), (x, y))
        return rd.SelfTuner(task, method, epochs=2, batch_size=4, warmup=0)

    with pytest.raises(TypeError, match=r"forward-mode rule.*use 'centered-stn'") as caught:
        tuner("delta-stn")
    assert "\n" not in str(caught.value)
    assert not tuner("centered-stn").coverage.uncovered


def test_a_network_without_any_right_response_is_refused():
    class Only(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.drop = nn.Embedding(WORDS, 8), rd.Dropout("rate")

        def forward(self, x):
            return self.drop(self.words(x.flip(0)).flip(0).mean(1))

    x, y = torch.randint(0, WORDS, (24, 4)), torch.randint(0, CLASSES, (24,))
    task = rd.Task(rd.HyperSpace(rate=rd.Bounded(0.2)), Only(), F.cross_entropy, (x, y), (x, y))
    with pytest.raises(
        ValueError, match=r"must have a layer that can respond, got none: 'words\.weight': its layer's outputs"
    ):
        rd.SelfTuner(task, epochs=2)


# --- parts that show nothing at first, and rows that depend on the data ----------------------------------------------


class Gated(nn.Module):
    """A branch that sees the examples in another order, behind a gate that starts at `gate`."""

    def __init__(self, gate):
        super().__init__()
        self.words, self.branch = nn.Embedding(WORDS, 8), nn.Linear(8, 8)
        self.gate = nn.Parameter(torch.full((8,), gate))
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        y = self.words(x).mean(1)
        return self.out(self.drop(y + self.gate * torch.tanh(self.branch(y.flip(0)).flip(0))))


class Sorted(nn.Module):
    """The examples are sorted by a number of theirs before the first layer, as before a recurrent network."""

    def __init__(self):
        super().__init__()
        self.words, self.first = nn.Embedding(WORDS, 8), nn.Linear(8, 8)
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        order = x[:, 0].argsort()
        y = torch.tanh(self.first(self.words(x[order]).mean(1)))
        return self.out(self.drop(y[order.argsort()]))


class Experts(nn.Module):
    """Each expert gets the tokens that a rule sends to it."""

    def __init__(self):
        super().__init__()
        self.words, self.experts = nn.Embedding(WORDS, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        y = self.words(x)
        mixed = torch.zeros_like(y)
        for number, expert in enumerate(self.experts):
            chosen = x % 3 == number
            if chosen.any():
                mixed[chosen] = torch.tanh(expert(y[chosen]))
        return self.out(self.drop(mixed.mean(1)))


class Frames(nn.Module):
    """Frames are folded into the batch; their number may differ."""

    def __init__(self):
        super().__init__()
        self.words, self.conv = nn.Embedding(WORDS, 8), nn.Conv1d(8, 8, 1)
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        y = self.words(x).reshape(-1, 8, 1)
        return self.out(self.drop(torch.tanh(self.conv(y))).reshape(len(x), -1, 8).mean(1))


class Encoder(nn.Module):
    """PyTorch's encoder with a mask, which has a fast path with nested tensors."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(self.drop(self.encoder(self.words(x), src_key_padding_mask=x == 0)).mean(1))


def tuner_for(model, x=None, per="example", **options):
    torch.manual_seed(0)
    model = model.double()
    x = torch.randint(1, WORDS, (24, 4)) if x is None else x
    y = torch.randint(0, CLASSES, (len(x),))
    space = rd.HyperSpace(rate=rd.Bounded(0.2, per=per), decay=rd.Positive(1e-3, per=per))
    task = rd.Task(space, model, F.cross_entropy, (x, y), (x, y), penalty=rd.L2("decay"))
    return rd.SelfTuner(task, epochs=1, batch_size=4, warmup=0, **options), x


@pytest.mark.parametrize("gate", [0.0, 1e-6, 1.0])
def test_a_wrong_part_behind_a_closed_gate_is_found(gate):
    tuner, x = tuner_for(Gated(gate))
    assert {"branch.weight", "branch.bias"} <= set(tuner.coverage.uncovered)
    with torch.no_grad():
        tuner.model.gate.fill_(1.0)
    assert max(errors(tuner, x[:4], 4)) < 1e-12


def test_weights_are_not_moved_by_the_look():
    torch.manual_seed(1)
    model = Gated(0.5).double()
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    tuner, _ = tuner_for(model)
    assert all(torch.equal(before[name], value) for name, value in tuner.model.state_dict().items())


@pytest.mark.parametrize("descending", [False, True])
def test_an_order_that_depends_on_the_data_is_found(descending):
    x = torch.randint(1, WORDS, (24, 4))
    x[:, 0] = x[:, 0].sort(descending=descending).values
    tuner, x = tuner_for(Sorted(), x)
    assert {"first.weight", "first.bias"} <= set(tuner.coverage.uncovered)
    assert max(errors(tuner, x[:4].flip(0), 4)) < 1e-12


def test_dropout_of_reordered_examples_is_refused_by_name():
    class Turned(Gated):
        def forward(self, x):
            return self.out(self.drop(torch.tanh(self.branch(self.words(x).mean(1))).flip(0)).flip(0))

    with pytest.raises(
        ValueError, match=r"inputs of layer 'drop' must have the batch on one axis, in the order of the exam"
    ):
        tuner_for(Turned(1.0))


def test_experts_whose_rows_depend_on_the_data_are_dropped_by_name():
    x = torch.tensor([[3, 3, 4, 5], [1, 2, 3, 3], [5, 5, 5, 4], [9, 1, 2, 1]] * 6)
    tuner, x = tuner_for(Experts(), x)
    assert any(name.startswith("experts") for name in tuner.coverage.uncovered)
    tuner.step()


def test_the_number_of_folded_frames_may_differ_between_splits():
    torch.manual_seed(0)
    y = torch.randint(0, CLASSES, (24,))
    train, valid = (torch.randint(1, WORDS, (24, frames)) for frames in (3, 5))
    space = rd.HyperSpace(rate=rd.Bounded(0.2), decay=rd.Positive(1e-3))
    model = Frames().double()
    task = rd.Task(space, model, F.cross_entropy, (train, y), (valid, y), penalty=rd.L2("decay"))
    tuner = rd.SelfTuner(task, epochs=1, batch_size=4, warmup=0)
    assert not tuner.coverage.uncovered
    for x in (train, valid):
        assert max(errors(tuner, x[:4], 4)) < 1e-12
    tuner.model.train()
    tuner.step()


@pytest.mark.parametrize("method", ["delta-stn", "centered-stn", "stn"])
def test_pytorchs_encoder_with_a_padding_mask_trains(method):
    x = torch.randint(0, WORDS, (24, 4))
    tuner, x = tuner_for(Encoder(), x, method=method)
    tuner.step()
    assert torch.backends.mha.get_fastpath_enabled()


def test_one_dropout_layer_may_act_before_and_after_folding():
    class Shared(Frames):
        def forward(self, x):
            y = self.drop(self.words(x)).reshape(-1, 8, 1)
            return self.out(self.drop(torch.tanh(self.conv(y))).reshape(len(x), -1, 8).mean(1))

    tuner, x = tuner_for(Shared())
    assert max(errors(tuner, x[:4], 4)) < 1e-12
    tuner.step()


def test_dropout_that_is_called_in_training_only_finds_its_batch():
    class Late(SequenceFirst):
        def forward(self, x):
            y = self.norm(self.words(x.T))
            return self.out((self.drop(y) if self.training else y).mean(0))

    tuner, _ = tuner_for(Late())
    assert tuner.model.drop.layout.axis == 1


@pytest.mark.parametrize("formed", [0, 4096])
def test_penalties_are_right_after_a_part_was_dropped(formed, monkeypatch):
    monkeypatch.setattr("ray_deltastn.response.weights.FORMED", formed)
    tuner, _ = tuner_of("reordered")
    response = randomised(tuner)
    delta = torch.randn(4, 2, dtype=torch.float64)
    found = rd.response.Weights(tuner.model, response, delta).squared_norm()
    for row, norm in zip(delta, found, strict=True):
        folded = response.fold(row)
        dense = sum(folded.get(name, p).square().sum() for name, p in tuner.model.named_parameters())
        torch.testing.assert_close(norm, dense)


@pytest.mark.parametrize("layer", [nn.GLU(1), nn.Hardsigmoid(), nn.Hardswish()])
def test_functions_whose_rule_has_no_backward_pass_are_exact_too(layer):
    class Activated(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.middle, self.layer = nn.Embedding(WORDS, 8), nn.Linear(8, 8), layer
            self.drop, self.out = rd.Dropout("rate"), nn.Linear(4 if isinstance(layer, nn.GLU) else 8, CLASSES)

        def forward(self, x):
            return self.out(self.drop(self.layer(self.middle(self.words(x).mean(1)))))

    tuner, x = tuner_for(Activated())
    assert not tuner.coverage.uncovered
    # PyTorch's own rule for the hard sigmoid has 1/6 in single precision.
    assert max(errors(tuner, x[:4], 4)) < 1e-8
    tuner.model.train()
    tuner.step()


class Padded(nn.Module):
    """A function of words without a bias; the padding word is zero."""

    def __init__(self, function):
        super().__init__()
        self.words, self.middle = nn.Embedding(WORDS, 8, padding_idx=0), nn.Linear(8, 8, bias=False)
        self.function, self.drop, self.out = function, rd.Dropout("rate"), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(self.drop(self.function(self.middle(self.words(x))).mean(1)))


#: Functions whose forward-mode rule is NaN, or has a NaN backward pass, for vectors of zeros.
AT_ZERO = {
    "divided-by-norm": lambda y: y / (y.norm(dim=-1, keepdim=True) + 1e-3),
    "normalize": lambda y: F.normalize(y, dim=-1, eps=1e-3),
    "deviation": lambda y: y - y.std(-1, keepdim=True),
    "distances": lambda y: torch.cdist(y, y).sum(-1, keepdim=True) + y,
    "root-behind-a-mask": lambda y: F.relu(y).sqrt(),
}


def padded(real):
    """Minibatches of `real` words, followed by padding."""
    x = torch.zeros(24, 4, dtype=torch.long)
    x[:, :real] = 1 + torch.arange(24)[:, None]
    return x


@pytest.mark.parametrize("function", AT_ZERO)
def test_zeros_have_the_tangents_of_the_backward_pass(function):
    tuner, _ = tuner_for(Padded(AT_ZERO[function]), padded(1))
    assert not tuner.coverage.uncovered
    assert all(math.isfinite(value) for value in tuner.step().values() if isinstance(value, float))
    assert all(bool(p.isfinite().all()) for p in tuner.response.parameters())


@pytest.mark.parametrize("function", ["divided-by-norm", "normalize", "deviation", "distances"])
def test_zeros_that_appear_after_the_look_have_tangents_too(function):
    torch.manual_seed(0)
    x, y = torch.cat([padded(4)[:12], padded(1)[:12]]), torch.randint(0, CLASSES, (24,))
    space = rd.HyperSpace(rate=rd.Bounded(0.2))
    task = rd.Task(space, Padded(AT_ZERO[function]).double(), F.cross_entropy, (x, y), (x, y))
    tuner = rd.SelfTuner(task, epochs=2, batch_size=4, warmup=0, train_interval=1)
    assert not [report for report in tuner.fit() if report["diverged"]]


def test_a_tangent_that_is_no_number_is_refused_with_its_reason():
    def limited(y):
        return y.renorm(2, 0, 1.0)  # its backward pass is finite for zeros, its forward-mode rule is not

    x = padded(0)
    x[::2] = padded(1)[::2]
    with pytest.raises(
        TypeError, match=r"tangents must be finite where gradients are, got others for .*'middle\.weight'"
    ):
        tuner_for(Padded(limited), x, per="batch")
    assert not tuner_for(Padded(limited), x, method="centered-stn", per="batch")[0].coverage.uncovered
