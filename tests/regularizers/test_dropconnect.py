"""DropConnect: masks, exact displaced passes against dense oracles, runs, exports and refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import ray_deltastn as rd
from ray_deltastn.regularizers import PassValues
from ray_deltastn.response.linearise import linearised_forward
from ray_deltastn.response.response import Response
from tests.oracles import assert_all_close, assert_close, dense_changes, dense_weights, jacobian, randomise

B, T, K, H, CLASSES, WORDS = 3, 5, 4, 4, 3, 12
RATE, SEED = 0.4, 5


class Reader(nn.Module):
    """A layer, or a cell at each step, and a linear layer on its outputs."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, CLASSES)

    def forward(self, x):
        inner = getattr(self.layer, "layer", self.layer)
        if isinstance(inner, nn.RNNCellBase):
            states = [None]
            for t in range(x.shape[1]):
                states.append(self.layer(x[:, t], states[-1]))
            y = torch.stack([s[0] if isinstance(s, tuple) else s for s in states[1:]], 1)
        else:
            y = self.layer(x)
        return self.out(y[0] if isinstance(y, tuple) else y)


MADE = {
    "lstm": lambda: (nn.LSTM(K, H, num_layers=2, bidirectional=True, batch_first=True), 2 * H),
    "projected": lambda: (nn.LSTM(K, H, proj_size=2, batch_first=True), 2),
    "gru": lambda: (nn.GRU(K, H, num_layers=2, batch_first=True), H),
    "rnn": lambda: (nn.RNN(K, H, bidirectional=True, batch_first=True), 2 * H),
    "linear": lambda: (nn.Linear(K, H), H),
    "lstm cell": lambda: (nn.LSTMCell(K, H), H),
    "gru cell": lambda: (nn.GRUCell(K, H), H),
}


def made(name):
    """The plain network, and the same with DropConnect at RATE."""
    torch.manual_seed(0)
    layer, width = MADE[name]()
    plain = Reader(layer, width).double()
    own = ("weight",) if name == "linear" else None
    wrapped = rd.DropConnect("rate", layer, own)
    masked = Reader(wrapped, width).double()
    masked.out = plain.out
    return plain, masked.train(), wrapped


def bind(wrapped, rate=RATE):
    space = rd.HyperSpace(rate=rd.Bounded(0.3, per="batch"), other=rd.Bounded(0.3))
    pass_values = PassValues(space, torch.Generator().manual_seed(SEED))
    pass_values.values = {"rate": torch.full((B,), rate, dtype=torch.float64)}
    wrapped.bind(pass_values)


def factors(wrapped):
    """M / (1 − p) of the pass by name in the plain network, drawn again from the seed."""
    generator = torch.Generator().manual_seed(SEED)
    shapes = {name: getattr(wrapped.layer, name).shape for name in wrapped.weights}
    draws = {n: torch.rand(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    return {f"layer.{name}": (draw >= RATE).double() / (1 - RATE) for name, draw in draws.items()}


def scaled(weights, masks):
    """Weights by name in the plain network, under their masks."""
    named = {name.replace("layer.layer.", "layer."): w for name, w in weights.items()}
    return {name: w * masks.get(name, 1.0) for name, w in named.items()}


@pytest.mark.parametrize("linearised", [False, True], ids=["network", "linearised"])
@pytest.mark.parametrize("name", MADE)
def test_a_displaced_pass_has_the_mask_on_the_weight_and_on_its_change(name, linearised):
    plain, masked, wrapped = made(name)
    response = randomise(Response(masked, 2, torch.Generator().manual_seed(1)))
    x, delta = torch.randn(B, T, K, dtype=torch.float64), 0.3 * torch.randn(B, 2, dtype=torch.float64)
    bind(wrapped)
    if linearised:
        found = linearised_forward(masked, x, response, delta)
    else:
        with response.displaced(delta):
            found = masked(x)
    masks = factors(wrapped)
    now = copy.deepcopy(plain)
    now.load_state_dict(scaled(masked.state_dict(), masks))
    expected = []
    for own, row in zip(x, delta, strict=True):
        if linearised:
            output, jac = jacobian(now, own)
            changes = scaled(dense_changes(masked, response, row), masks)
            moved = sum(torch.einsum("n...,...->n", jac[name], change) for name, change in changes.items())
            expected.append((output + moved).view(T, CLASSES))
        else:
            dense = scaled(dense_weights(masked, response, row), masks)
            expected.append(functional_call(plain, dense, (own[None],))[0])
    assert_close(found, torch.stack(expected), rtol=1e-12)


@pytest.mark.parametrize("name", MADE)
def test_a_rate_of_zero_is_the_plain_layer_to_the_bit_and_so_is_evaluation(name):
    plain, masked, wrapped = made(name)
    x = torch.randn(B, T, K, dtype=torch.float64)
    bind(wrapped, rate=0.0)
    assert torch.equal(masked(x), plain(x))
    wrapped.bind(None)
    assert torch.equal(masked.eval()(x), plain(x))


@pytest.mark.parametrize("name", MADE)
def test_a_plain_pass_trains_the_weights_through_one_mask_for_all_steps(name):
    plain, masked, wrapped = made(name)
    x = torch.randn(B, T, K, dtype=torch.float64)
    bind(wrapped)
    found = masked(x)
    expected = functional_call(plain, scaled(dict(plain.named_parameters()), factors(wrapped)), (x,))
    assert_close(found, expected, rtol=1e-12)
    parameters = list(plain.parameters())
    ours, oracles = (torch.autograd.grad(y.square().sum(), parameters) for y in (found, expected))
    assert_all_close(ours, oracles, rtol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_pass_leaves_the_parameters_of_a_recurrent_layer_where_they_are(name, monkeypatch):
    _, masked, wrapped = made(name)
    layer, x, calls = wrapped.layer, torch.randn(B, T, K, dtype=torch.float64), []
    bind(wrapped)
    # On a GPU this call moves the parameters, and each captured step would have to be captured again.
    monkeypatch.setattr(type(layer), "flatten_parameters", lambda self: calls.append(self))
    masked(x)
    assert all(kept is p for kept, p in zip(layer._flat_weights, layer.parameters(), strict=True))
    masked.eval()(x)
    assert not calls
    assert "flatten_parameters" not in vars(layer)


def test_each_pass_draws_a_mask():
    _, masked, wrapped = made("lstm")
    x = torch.randn(B, T, K, dtype=torch.float64)
    bind(wrapped)
    first, again = masked(x), masked(x)
    wrapped.pass_values.values = dict(wrapped.pass_values.values)
    assert torch.equal(first, again)
    assert not torch.equal(first, masked(x))


class Words(nn.Module):
    """A model of words with DropConnect and dropout."""

    def __init__(self):
        super().__init__()
        self.embedding, self.drop = nn.Embedding(WORDS, K), nn.Dropout(0.2)
        self.rnn, self.out = rd.DropConnect("rate", nn.LSTM(K, H, batch_first=True)), nn.Linear(H, WORDS)

    def forward(self, x):
        return self.out(self.drop(self.rnn(self.embedding(x))[0])).transpose(1, 2)


def words_task(per="batch"):
    torch.manual_seed(0)
    x = torch.randint(0, WORDS, (24, T + 1))
    model = Words()
    space = rd.HyperSpace(rate=rd.Bounded(0.3, per=per), **rd.tune_dropouts(model))
    return rd.Task(space, model, F.cross_entropy, (x[:, :-1], x[:, 1:]), (x[:, :-1], x[:, 1:]))


@pytest.mark.parametrize("method", ["delta-stn", "centered-stn", "stn"])
def test_a_run_tunes_the_rate_beside_a_rate_for_each_example(method):
    tuner = rd.SelfTuner(words_task(), method, epochs=2, batch_size=8, warmup=0, train_interval=1, lr=0.1)
    assert not tuner.coverage.uncovered
    before = tuner.space.lam.detach().clone()
    list(tuner.fit())
    assert (tuner.space.lam != before).all()
    assert tuner.model.rnn._pass_values._drawn == {}


def test_an_export_has_the_plain_weights_of_the_layer():
    tuner = rd.SelfTuner(words_task(), epochs=1, batch_size=8, warmup=0, train_interval=1, lr=0.1)
    list(tuner.fit())
    state = tuner.export()
    assert set(state) == set(Words().state_dict())
    assert torch.equal(state["rnn.layer.weight_hh_l0"], tuner.model.rnn.layer.weight_hh_l0)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match=r'`per="batch"` must hold for the rate of DropConnect.*for \'rate\'; a mask'):
        words_task(per="example")
    with pytest.raises(TypeError, match=r"`layer` must be a recurrent layer.*got Conv1d"):
        rd.DropConnect("rate", nn.Conv1d(2, 2, 3))
    with pytest.raises(TypeError, match="`weights` must be several names"):
        rd.DropConnect("rate", nn.Linear(2, 2), "weight")
    with pytest.raises(ValueError, match="`weights` must name weights of Linear, got none; it has weight"):
        rd.DropConnect("rate", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="`weights` must name weights of LSTM, got weight_hh_l1; it has weight_ih_l0"):
        rd.DropConnect("rate", nn.LSTM(2, 2), ["weight_hh_l1"])
    normalised = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got weight; it has none of its own, as after `weight_norm`"):
        rd.DropConnect("rate", normalised, ["weight"])
    space = rd.HyperSpace(rate=rd.Bounded(0.3, low=0.0, high=2.0, per="batch"))
    with pytest.raises(ValueError, match="`0 <= low < high <= 1` must hold for the rate of DropConnect"):
        rd.DropConnect("rate", nn.LSTM(2, 2)).check(space)
