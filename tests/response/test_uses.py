"""Ways in which networks use their weights: the response is exact for each, for one example at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import ray_deltastn as rd
from ray_deltastn.response import Response, linearised_forward
from ray_deltastn.response.layout import Layout
from ray_deltastn.response.linearise import rules
from ray_deltastn.response.trees import taken
from tests.networks import Columns
from tests.oracles import assert_close

WIDTH, STEPS, EXAMPLES, BATCH, CLASSES = 8, 5, 12, 6, 3


class Texts(nn.Module):
    """Words → packed sequences → recurrent layer → padded to the longest text of the batch."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.embed, self.body = nn.Embedding(20, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=batch_first)
        self.between, self.drop, self.out = nn.Linear(WIDTH, WIDTH), rd.Dropout("rate"), nn.Linear(WIDTH, CLASSES)

    def forward(self, x, lengths):
        first = self.body.batch_first
        x = self.embed(x if first else x.T)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=first, enforce_sorted=False)
        y = self.drop(self.between(pad_packed_sequence(self.body(packed)[0], batch_first=first)[0]))
        y = y if first else y.transpose(0, 1)
        inside = torch.arange(y.shape[1]) < lengths[:, None]
        return self.out((y * inside[..., None]).sum(1))


class WeightedBags(nn.Module):
    """Bags of words with learned weights."""

    def __init__(self):
        super().__init__()
        self.embed, self.weight = nn.EmbeddingBag(20, WIDTH, mode="sum"), nn.Embedding(20, 1)
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(WIDTH, CLASSES)

    def forward(self, x, _):
        return self.out(self.drop(self.embed(x, per_sample_weights=self.weight(x)[..., 0])))


class Body(nn.Module):
    """A function with layers between two layers, for inputs (B, T, 8)."""

    def __init__(self, function, **layers):
        super().__init__()
        self.first, self.drop, self.out = nn.Linear(WIDTH, WIDTH), rd.Dropout("rate"), nn.Linear(WIDTH, CLASSES)
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.out(self.drop(torch.tanh(self.function(self, torch.tanh(self.first(x)))).mean(1)))


class Rows(nn.Module):
    """A table that another module reads."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(STEPS, WIDTH))


def parametrised(layer, name):
    return parametrizations.weight_norm(layer, name)


def listed(*shape):
    return nn.ParameterList([nn.Parameter(torch.randn(*shape)) for _ in range(2)])


def doubled(layer):
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return layer


def swapped(model, x):
    x = x.transpose(0, 1)
    return model.bilinear(x, x.flip(2)).transpose(0, 1)


def in_windows(blocks, batch_first, body):
    """A layer over three windows of each example, as one block per example or one block per window."""

    def function(model, x):
        windows = torch.stack([x, 2 * x, 3 * x], 1 if blocks else 0)
        y = windows.flatten(0, 1)
        y = body(model, y if batch_first else y.transpose(0, 1))
        return (y if batch_first else y.transpose(0, 1)).view_as(windows).sum(1 if blocks else 0)

    return function


def bilinear():
    return nn.Bilinear(WIDTH, WIDTH, WIDTH)


def lstm(batch_first=True):
    return nn.LSTM(WIDTH, WIDTH, batch_first=batch_first)


def attention(batch_first=True):
    return nn.MultiheadAttention(WIDTH, 2, add_bias_kv=True, batch_first=batch_first)


def attends(model, x):
    return model.attention(x, x, x)[0]


COMPUTED = {"lstm.parametrizations.weight_hh_l0.original0", "lstm.parametrizations.weight_hh_l0.original1"}
OUT = "attention.out_proj.parametrizations.weight.original"
TEXT = (torch.randint(0, 20, (EXAMPLES, STEPS)), torch.arange(EXAMPLES) % STEPS + 1)

#: name → the network, and the parameters without a response per example and per batch.
USES = {
    "texts": (Texts, set(), set()),
    "texts-steps-first": (lambda: Texts(batch_first=False), set(), set()),
    "weighted-bags": (WeightedBags, set(), set()),
    "keywords": (lambda: Body(lambda m, x: m.bilinear(x, input2=x.flip(2)), bilinear=bilinear()), set(), set()),
    "other-order": (
        lambda: Body(lambda m, x: m.bilinear(input2=x.flip(2), input1=x), bilinear=bilinear()),
        set(),
        set(),
    ),
    "two-inputs-steps-first": (lambda: Body(swapped, bilinear=bilinear()), set(), set()),
    "hook-on-the-output": (
        lambda: Body(lambda m, x: m.linear(x), linear=doubled(nn.Linear(WIDTH, WIDTH))),
        set(),
        set(),
    ),
    "temperature": (lambda: Body(lambda m, x: x * m.scale.exp(), scale=nn.Parameter(torch.tensor(0.5))), set(), set()),
    "lists": (lambda: Body(lambda m, x: x * m.lists[0] + m.lists[1], lists=listed(WIDTH)), set(), set()),
    "table-of-another-module": (lambda: Body(lambda m, x: x + m.rows.table, rows=Rows()), set(), set()),
    "table-of-positions": (
        lambda: Body(lambda m, x: x + m.rows.weight[: x.shape[1]], rows=nn.Embedding(STEPS, WIDTH)),
        {"rows.weight"},
        set(),
    ),
    "weight-of-a-layer": (
        lambda: Body(lambda m, x: F.linear(x, m.linear.weight, m.linear.bias), linear=nn.Linear(WIDTH, WIDTH)),
        set(),
        set(),
    ),
    **{
        f"{name}-in-{'blocks' if blocks else 'turns'}-{'batch' if first else 'steps'}-first": (
            lambda blocks=blocks, first=first, body=body, make=make: Body(
                in_windows(blocks, first, body), body=make(first), inner=rd.Dropout("rate")
            ),
            set(),
            set(),
        )
        for name, body, make in (
            ("attention", lambda m, x: m.inner(m.body(x, x, x)[0]), attention),
            ("lstm", lambda m, x: m.inner(m.body(x)[0]), lstm),
        )
        for blocks in (True, False)
        for first in (True, False)
    },
    "parametrised-lstm": (
        lambda: Body(lambda m, x: m.lstm(x)[0], lstm=parametrised(lstm(), "weight_hh_l0")),
        COMPUTED,
        COMPUTED,
    ),
    "parametrised-attention": (
        lambda: (
            model := Body(attends, attention=attention()),
            parametrizations.spectral_norm(model.attention.out_proj),
        )[0],
        {OUT},
        {OUT},
    ),
}


def tuner_for(model, per, x):
    y = torch.arange(EXAMPLES) % CLASSES
    space = rd.HyperSpace(rate=rd.Bounded(0.2, per=per), decay=rd.Positive(1e-3, per=per))
    task = rd.Task(space, model, F.cross_entropy, (x, y), (x, y), penalty=rd.L2("decay"))
    return rd.SelfTuner(task, epochs=2, batch_size=BATCH, warmup=0)


@pytest.mark.filterwarnings("ignore:at least half")
@pytest.mark.parametrize("per", ["example", "batch"])
@pytest.mark.parametrize("name", USES)
def test_the_response_is_exact(name, per):
    torch.manual_seed(0)
    make, *missing = USES[name]
    x = (
        TEXT
        if name in ("texts", "texts-steps-first", "weighted-bags")
        else (torch.randn(EXAMPLES, STEPS, WIDTH).double(),)
    )
    tuner = tuner_for(make().double(), per, x)
    assert set(tuner.coverage.uncovered) == missing[per == "batch"]
    response, model = tuner.response, tuner.model.eval()
    with torch.no_grad():
        for slot in response.slots:
            response.U[slot.start : slot.stop].normal_(0.0, 0.1)
    few, delta = taken(x, slice(BATCH)), torch.randn(BATCH if per == "example" else 1, 2, dtype=torch.float64)
    with torch.no_grad():
        base, linearised = model(*few), linearised_forward(model, few, response, delta)
        with response.displaced(delta):
            displaced = model(*few)
    for b, row in enumerate(delta.expand(BATCH, -1)):
        folded = {n: w.detach() for n, w in response.fold(row).items()}
        weights = {n: model.get_parameter(n).detach() for n in folded}
        f = lambda w, b=b: functional_call(model, w, taken(few, slice(b, b + 1)))[0]  # noqa: E731
        along = {n: folded[n] - w for n, w in weights.items()}
        assert_close(displaced[b], f(folded))
        with rules(response):
            small = 1e-3  # packed recurrent layers have no rule for `jvp`
            away = [f({n: w + s * small * along[n] for n, w in weights.items()}) for s in (-2, -1, 1, 2)]
        slope = (away[0] - 8 * away[1] + 8 * away[2] - away[3]) / (12 * small)
        assert_close(linearised[b] - base[b], slope, rtol=1e-7)
    model.train()
    assert all(torch.isfinite(torch.tensor(report["valid_loss"])) for report in tuner.fit())


@pytest.mark.parametrize("body", [lstm, lambda: nn.RNN(WIDTH, WIDTH, batch_first=True)], ids=["lstm", "rnn"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_recurrent_layer_in_float32_passes_tangents_whether_its_weights_move_or_not(body, frozen):
    torch.manual_seed(0)
    recurrent = body().requires_grad_(not frozen)
    model = Body(lambda m, x: m.body(m.own(x))[0], own=Columns(WIDTH, WIDTH), body=recurrent)
    x = torch.randn(EXAMPLES, STEPS, WIDTH)
    tuner = tuner_for(model, "example", (x,))
    assert tuner.coverage.share == 1
    response, model = tuner.response, tuner.model.eval()
    with torch.no_grad():
        response.U.normal_(0.0, 0.1)
        delta = torch.randn(BATCH, 2)
        found = linearised_forward(model, x[:BATCH], response, delta) - model(x[:BATCH])
    weights = {n: model.get_parameter(n).detach() for n in response.parameter_names}
    along = {n: w.detach() - weights[n] for n, w in response.fold(delta[0]).items()}
    with torch.backends.mkldnn.flags(enabled=False):  # its kernels have no forward-mode rule
        _, tangent = jvp(lambda w: functional_call(model, w, (x[:1],))[0], (weights,), (along,))
    torch.testing.assert_close(found[0], tangent, rtol=1e-4, atol=1e-5)


def test_a_try_in_functions_is_undone_as_a_whole():
    model = nn.Module()
    model.layer, model.holder = nn.Linear(3, 3), nn.Module()
    model.holder.weight, model.holder.extra = model.layer.weight, nn.Linear(2, 2)
    response = Response(model, 2)
    (slot,) = (slot for slot in response.slots if slot.name == "layer.weight")
    hooked, replaced = dict(response.uses.hooked), list(response.uses.replaced.uses())
    assert any(name == slot.name for name, _, _ in replaced)
    slots, undo = response.uses.in_functions(slot, Layout())
    assert {own.name for own in slots} == {"layer.weight", "layer.bias"}
    assert not any(name == slot.name for name, _, _ in response.uses.replaced.uses())
    undo()
    assert response.uses.hooked == hooked
    assert response.uses.replaced.uses() == replaced
    assert not response.uses.functional
