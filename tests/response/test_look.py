"""Networks whose layers do not have the batch in front, or whose weights are used elsewhere, are right or say so.

Oracle: float64, evaluation mode, U ~ N(0, 0.1); the tangent of the linearised pass against `torch.func.jvp` of the
network without hooks along fold(δ) − w₀, one example at a time; the displaced pass against `functional_call` there.
"""

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
    "positions": (Positions, {"positions.weight"}),
    "sequence-first": (SequenceFirst, set()),
    "folded": (Folded, set()),
    "folded-in-blocks": (lambda: Folded(blocks=True), set()),
    "functional": (Functional, {"words.weight"}),
    "reordered": (Reordered, {"first.weight", "first.bias"}),
    "holder": (Holder, {"idle.weight", "idle.bias"}),
    "mixed-use": (MixedUse, {"both.weight", "both.bias"}),
}
#: What is missing with one displacement for the whole batch.
SHARED = {"functional": {"words.weight"}, "holder": {"idle.weight", "idle.bias"}}


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
            return F.linear(self.drop(self.words(x).mean(1)), self.words.weight)

    x, y = torch.randint(0, WORDS, (24, 4)), torch.randint(0, WORDS, (24,))
    task = rd.Task(rd.HyperSpace(rate=rd.Bounded(0.2)), Only(), F.cross_entropy, (x, y), (x, y))
    with pytest.raises(
        ValueError, match=r"must have a layer that can respond, got none: 'words\.weight': it is also used"
    ):
        rd.SelfTuner(task, epochs=2)
