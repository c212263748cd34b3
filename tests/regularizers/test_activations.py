"""Penalties on activations: their values, in plain and in linearised passes, and runs that tune them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jvp

import ray_deltastn as rd
from ray_deltastn.response.layout import Layout
from tests.oracles import assert_close

B, T, K, CLASSES = 6, 5, 4, 3


class Model(nn.Module):
    """Two layers with both penalties between them; it also returns what is penalised, if asked."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(K, K), nn.Linear(K, CLASSES)
        self.alpha, self.beta = rd.ActivationPenalty("alpha"), rd.TemporalActivationPenalty("beta")

    def forward(self, x):
        return self.out(self.beta(self.alpha(self.hidden(x))).mean(1))

    def hidden(self, x):
        return torch.tanh(self.first(x))


def tuner(method="delta-stn", per="example", model=None, **options):
    torch.manual_seed(0)
    x = torch.randn(24, T, K, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (24,))
    space = rd.HyperSpace(alpha=rd.Positive(0.1, per=per), beta=rd.Positive(0.2, per=per))
    task = rd.Task(space, (model or Model()).double(), F.cross_entropy, (x, y), (x, y))
    given = {"epochs": 2, "batch_size": B, "warmup": 0, "train_interval": 1, "lr": 0.1}
    return rd.SelfTuner(task, method, **{**given, **options})


def penalties(h, alpha, beta):
    return alpha * h.square().mean((1, 2)) + beta * h.diff(dim=1).square().mean((1, 2))


def test_the_training_loss_has_both_terms_and_the_validation_loss_has_none():
    run = tuner("fixed", hyperparameters={"alpha": 0.3, "beta": 0.7})
    x, y = (t[:B] for t in run.task.train)
    run.model.train()
    loss = F.cross_entropy(run.model(x), y)
    h = run.model.hidden(x)
    assert_close(run.objective.train_loss(x, y), loss + penalties(h, 0.3, 0.7).mean(), rtol=1e-12)
    run.model.eval()
    assert_close(run.objective.valid_objective(x, y, run.space.lam), F.cross_entropy(run.model(x), y), rtol=1e-12)


@pytest.mark.parametrize("per", ["example", "batch"])
@pytest.mark.parametrize("method", ["delta-stn", "centered-stn"])
def test_a_perturbed_pass_penalises_the_activations_of_each_example(method, per):
    run = tuner(method, per)
    x, y = (t[:B] for t in run.task.train)
    model, response = run.model.train(), run.response
    with torch.no_grad():
        response.U.normal_(0.0, 0.2)
    eps = 0.3 * torch.randn(B, 2, dtype=torch.float64)
    eps = eps if per == "example" else eps[:1].expand(B, 2)
    found = run.objective.train_loss(x, y, eps)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    expected = []
    for own, label, row in zip(x, y, eps, strict=True):
        folded = {name: p.detach() for name, p in response.fold(row).items()}

        def both(w, own=own):
            h = torch.tanh(F.linear(own, w["first.weight"], w["first.bias"]))
            return h, F.linear(h.mean(0), w["out.weight"], w["out.bias"])

        if method == "delta-stn":
            along = {name: folded[name] - weights[name] for name in weights}
            (h, out), (dh, dout) = jvp(both, (weights,), (along,))
            h, out = h + dh, out + dout
        else:
            h, out = both(folded)
        alpha, beta = torch.exp(run.space.lam.detach() + row)
        expected.append(F.cross_entropy(out, label) + penalties(h[None], alpha, beta)[0])
    assert_close(found, torch.stack(expected).mean(), rtol=1e-9)
    (gradient,) = torch.autograd.grad(found, [response.U])
    assert gradient.any()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_batch_may_be_on_axis_1(axis):
    run = tuner()
    h = torch.randn(B, T, K, dtype=torch.float64)
    values = torch.rand(2, B, dtype=torch.float64)
    layers = run.model.alpha, run.model.beta
    run.objective.pass_values.values = dict(zip(("alpha", "beta"), values, strict=True))
    for layer in layers:
        layer.layout = Layout(axis)
    found = sum(layer.term(h if axis == 0 else h.transpose(0, 1)) for layer in layers)
    assert_close(found, penalties(h, *values[..., None, None].squeeze(-1).squeeze(-1)), rtol=1e-12)


@pytest.mark.parametrize("method", ["delta-stn", "stn", "unrolled"])
def test_strengths_are_tuned(method):
    run = tuner(method, graph="off", optimizer="sgd")
    before = run.space.lam.detach().clone()
    list(run.fit())
    assert (run.space.lam != before).all()
    assert run.objective.pass_values.activations is None


def test_captured_steps_give_the_numbers_of_eager_steps():
    off, on = (tuner(graph=graph, optimizer="sgd", epochs=4) for graph in ("off", "on"))
    for run in (off, on):
        list(run.fit())
    assert on.algorithm.captured
    assert torch.equal(off.space.lam, on.space.lam)
    assert all(torch.equal(a, b) for a, b in zip(off.model.parameters(), on.model.parameters(), strict=True))


def test_a_sequence_of_one_step_has_no_temporal_penalty():
    layer = rd.TemporalActivationPenalty("beta")
    assert not layer.measured(torch.ones(B, 1, K)).any()


def test_a_strength_below_zero_is_refused():
    torch.manual_seed(0)
    x, y = torch.randn(8, T, K), torch.zeros(8, dtype=torch.long)
    space = rd.HyperSpace(alpha=rd.Bounded(0.0, low=-1.0, high=1.0), beta=rd.Positive(1.0))
    with pytest.raises(ValueError, match="`low >= 0` must hold for the strength of ActivationPenalty, got low=-1"):
        rd.Task(space, Model(), F.cross_entropy, (x, y), (x, y))


def test_a_penalty_that_no_pass_meets_gives_a_warning():
    class Idle(Model):
        def forward(self, x):
            return self.out(self.alpha(self.hidden(x)).mean(1))

    with pytest.warns(rd.RunWarning, match="got no call for 'beta', such as of layer 'beta'"):
        tuner(model=Idle())
