"""A tuned rate that a model reads as a number has the masks and the gradients of a call of the layer."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.methods import Objective, get_method
from ray_deltastn.regularizers import PassValues, RateError, ReadRates
from ray_deltastn.regularizers.rates import Rate
from ray_deltastn.response import Response
from tests.oracles import assert_all_close, assert_close, randomise

BATCH, TOKENS, HEADS, WIDTH = 4, 5, 2, 8


class Attention(nn.Module):
    """Self-attention that gives the rate to a function, or that calls its dropout layer."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.qkv, self.drop, self.out = nn.Linear(WIDTH, 3 * WIDTH), rd.Dropout("rate"), nn.Linear(WIDTH, 3)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(-1, (3, HEADS, -1)).movedim(2, 0).transpose(2, 3)
        q, k, v = qkv  # (B, heads, T, d)
        if self.how == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop.p if self.training else 0.0)
        else:
            weights = (q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(-1)
            if self.how == "function":
                weights = F.dropout(weights, p=self.drop.p, training=self.training)
            else:
                weights = self.drop(weights)
            mixed = weights @ v
        return self.out(mixed.transpose(1, 2).flatten(2).mean(1))


def objective_of(how, method="delta-stn", per="example"):
    torch.manual_seed(0)
    model = Attention(how).double()
    space = rd.HyperSpace(rate=rd.Bounded(0.3, low=0.0, high=0.9, per=per)).to("cpu", torch.float64)
    space.use("clamped")
    values = PassValues(space, torch.Generator().manual_seed(1))
    model.drop.bind(values)
    response = randomise(Response(model, 1))
    return Objective(model, F.mse_loss, space, values, get_method(method), response)


@pytest.mark.parametrize("how", ["fused", "function"])
@pytest.mark.parametrize("method", ["delta-stn", "centered-stn", "stn"])
@pytest.mark.parametrize("per", ["example", "batch"])
def test_gradients_are_those_of_a_call_of_the_layer(how, method, per):
    torch.manual_seed(2)
    x, y = torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64), torch.randn(BATCH, 3, dtype=torch.float64)
    eps = torch.randn(BATCH if per == "example" else 1, 1, dtype=torch.float64).expand(BATCH, 1)
    found = []
    for kind in (how, "called"):
        objective = objective_of(kind, method, per)
        lam = objective.space.lam.detach().requires_grad_()
        # A linearised pass has no gradients in w₀.
        objective.model.requires_grad_(method == "stn")
        loss = objective.train_loss(x, y, eps, lam=lam)
        learned = [lam, *objective.response.parameters(), *(p for p in objective.model.parameters() if p.requires_grad)]
        found.append([loss, *torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True)])
    assert found[0][1].abs() > 1e-6
    assert_all_close(found[0], found[1], rtol=1e-12)


def test_each_example_has_its_own_rate():
    objective = objective_of("fused")
    drop = objective.model.train().drop
    seen = []
    drop.register_forward_hook(lambda m, args, out: seen.append((out == 0).double().flatten(1).mean(1)))
    rates = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=torch.float64)
    drop.pass_values.values = {"rate": rates}
    with ReadRates():
        objective.model(torch.randn(4, 60, WIDTH, dtype=torch.float64))
    assert (seen[0] - rates).abs().max() < 0.03


def test_a_rate_in_training_is_no_number():
    drop = objective_of("fused").model.train().drop
    assert (drop.p > 0, drop.p > 1.0, drop.p < 0.0, drop.p == 0.0, drop.p <= 1, bool(drop.p)) == (
        True, False, False, False, True, True
    )  # fmt: skip
    x = torch.ones(3)
    for wrong in (
        lambda: 1 - drop.p,
        lambda: drop.p * 2,
        lambda: float(drop.p),
        lambda: drop.p > 0.5,
    ):
        with pytest.raises(RateError, match=r"the rate of Dropout.* must be used by a call of the layer, .*got"):
            wrong()
    with ReadRates(), pytest.raises(RateError, match=r"got a call of `torch\.Tensor\.mul`"):
        x * drop.p
    with pytest.raises((RuntimeError, ValueError), match="nan"):
        F.dropout(x, drop.p)


def test_a_rate_in_evaluation_is_zero_and_a_rate_outside_a_run_is_refused():
    layer = rd.Dropout("rate")
    with pytest.raises(RuntimeError, match="has values only inside a `SelfTuner` or a trial"):
        _ = layer.p
    layer.eval()
    assert layer.p == 0.0
    rate = Rate(layer)
    assert (1 - rate, 2 * rate, rate > 0, float(rate), bool(rate)) == (1.0, 0.0, False, 0.0, False)
    assert torch.equal(F.dropout(torch.ones(3), rate, training=False), torch.ones(3))


def test_a_copy_of_a_rate_belongs_to_the_copy_of_its_layer():
    model = nn.ModuleDict({"drop": rd.Dropout("rate")})
    model.rate = Rate(model.drop)
    other = copy.deepcopy(model)
    assert other.rate.layer is other["drop"]


def images_of(count):
    torch.manual_seed(0)
    return torch.randn(count, TOKENS, WIDTH), torch.randn(count, 3)


def tuner_of(how, **options):
    torch.manual_seed(0)
    task = rd.Task(
        rd.HyperSpace(rate=rd.Bounded(0.3)), Attention(how), F.mse_loss, images_of(16), images_of(8), **options
    )
    return rd.SelfTuner(task, epochs=2, batch_size=8, warmup=0, train_interval=1, lr=0.01, graph="off")


def test_runs_are_equal_and_only_a_model_that_reads_rates_pays_for_it():
    runs = {how: tuner_of(how) for how in ("called", "fused", "function")}
    assert {how: run.objective.reads_rates for how, run in runs.items()} == {
        "called": False,
        "fused": True,
        "function": True,
    }
    values = {how: [report["hyperparameters/rate"] for report in run.fit()] for how, run in runs.items()}
    assert values["called"][-1] != 0.3
    assert values["fused"] == pytest.approx(values["called"], rel=1e-4)
    assert values["function"] == pytest.approx(values["called"], rel=1e-5)


def test_a_rate_without_effect_is_named():
    class Idle(Attention):
        def forward(self, x):
            return self.out(self.qkv(x)[..., :WIDTH].mean(1))

    task = rd.Task(rd.HyperSpace(rate=rd.Bounded(0.3)), Idle("called"), F.mse_loss, images_of(16), images_of(8))
    with pytest.warns(rd.RunWarning, match="got no call for 'rate', such as of layer 'drop'"):
        rd.SelfTuner(task, epochs=1, batch_size=8)


def test_a_rate_in_arithmetic_is_refused_before_the_first_step():
    class Own(Attention):
        def forward(self, x):
            return super().forward(x / (1 - self.drop.p))

    task = rd.Task(rd.HyperSpace(rate=rd.Bounded(0.3)), Own("called"), F.mse_loss, images_of(16), images_of(8))
    with pytest.raises(RateError, match="got arithmetic"):
        rd.SelfTuner(task, epochs=1, batch_size=8)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_pytorchs_attention_has_the_rate_of_each_example(batch_first, need_weights):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first).double()
    layer.rate = rd.Dropout("rate")
    layer.dropout = Rate(layer.rate)
    values = PassValues(rd.HyperSpace(rate=rd.Bounded(0.3)), torch.Generator())
    values.values = {"rate": torch.tensor([0.0, 0.2, 0.5, 0.8], dtype=torch.float64)}
    layer.rate.bind(values)
    x = torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64)

    q, k, v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).unflatten(-1, (3, HEADS, -1)).unbind(2)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div((WIDTH // HEADS) ** 0.5).softmax(-1)
    values.generator.manual_seed(1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", layer.rate(weights), v)
    expected = layer.out_proj(mixed.flatten(2))

    values.generator.manual_seed(1)
    turned = x if batch_first else x.transpose(0, 1)
    with ReadRates():
        out = layer(turned, turned, turned, need_weights=need_weights)[0]
    assert_close(out if batch_first else out.transpose(0, 1), expected, rtol=1e-12)
