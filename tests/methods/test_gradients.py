"""Objectives and their gradients in w₀, Θ, λ and σ equal a dense oracle; steps equal PyTorch's SGD."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ray_deltastn.domains import Bounded, Positive, Unbounded
from ray_deltastn.methods import Objective, StepOptions, Steps, get_method
from ray_deltastn.regularizers import L2, Dropout, PassValues
from ray_deltastn.response import Response
from ray_deltastn.space import HyperSpace
from tests.networks import BY_NAME
from tests.oracles import (
    assert_all_close,
    assert_close,
    dense_prediction,
    dense_squared_norm,
    grad,
    randomise,
    window,
)

METHODS = pytest.mark.parametrize("method", ["stn", "centered-stn", "delta-stn"])
LOSSES = {
    "cross-entropy": (F.cross_entropy, True),
    "cross-entropy-per-example": (lambda o, y: F.cross_entropy(o, y, reduction="none"), True),
    "squared-error-per-example": (lambda o, y: (o - y).square().flatten(1).sum(1), False),
}
#: Networks with an output (B, classes), for cross-entropy.
CLASSIFIERS = tuple(
    BY_NAME[name]
    for name in (
        "linear",
        "linear-inplace-relu",
        "conv1d-groups-stride-dilation",
        "conv2d-circular-stride",
        "conv3d",
        "embedding-padding",
        "batchnorm2d",
        "layernorm-two-axes",
        "groupnorm",
        "rmsnorm",
        "tied-embedding-first",
        "shared-parameter",
        "residual",
        "half-frozen",
    )
)


@pytest.fixture(autouse=True)
def closed_form(monkeypatch):
    """Use the closed form of the norm of displaced weights, as for large networks."""
    monkeypatch.setattr("ray_deltastn.response.weights.FORMED", 0)


NETS = pytest.mark.parametrize("network", CLASSIFIERS, ids=lambda n: n.name)
TAU = 0.37
DECAY, LOW, HIGH = 0.03, -1.0, 2.0


def make_space():
    space = HyperSpace(
        decay=Positive(DECAY, scale=0.7), other=Bounded(0.3, scale=1.2, low=LOW, high=HIGH, map="sigmoid")
    ).double()
    with torch.no_grad():
        space.lam += torch.tensor([0.2, -0.4])
    return space


def strength(lam):
    """s(λ) of the weight decay for rows of λ, written out."""
    return torch.exp(lam[..., 0])


def other(lam):
    """s(λ) of the other hyperparameter, written out."""
    return LOW + (HIGH - LOW) / (1 + torch.exp(-lam[..., 1]))


class Direct:
    """A validation penalty that depends on the weights and directly on the hyperparameters."""

    names = ("decay", "other")

    def __call__(self, values, weights):
        return values["other"].square() + values["decay"] * weights.squared_norm(biases=False)


class Problem:
    """One network with a random Θ, a batch, and the objective of a method."""

    def __init__(self, network, method, loss="cross-entropy", seed=0, new=False, **parts):
        self.model, self.x = network(seed=seed)
        self.response = Response(self.model, 2)
        if not new:
            randomise(self.response)
        self.space = make_space()
        self.generator = torch.Generator().manual_seed(5)
        pass_values = PassValues(self.space, self.generator)
        self.method = get_method(method)
        self.loss, integer = LOSSES[loss]
        output = self.model(self.x)
        self.y = torch.randint(0, output.shape[1], output.shape[:1]) if integer else torch.randn_like(output)
        self.objective = Objective(self.model, self.loss, self.space, pass_values, self.method, self.response, **parts)
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.theta = list(self.response.parameters())

    def normal(self, seed=5):
        """The normal draw z from which the next `sample` computes ε = σ ⊙ z."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.x.shape[0], 2, generator=generator, dtype=torch.float64)

    def dense_loss(self, delta, x=None):
        x = self.x if x is None else x
        prediction = dense_prediction(self.model, self.response, delta, x, self.method.linearized)
        return self.loss(prediction, self.y).mean()


# --- L_T -----------------------------------------------------------------------------------------------------------


@NETS
@METHODS
@pytest.mark.parametrize("biases", [True, False], ids=["all-weights", "no-biases"])
def test_perturbed_train_loss_and_gradients_equal_oracle(network, method, biases):
    p = Problem(network, method, penalty=[L2("decay", biases=biases, divide_by=4.0)])
    eps = p.space.scale.detach() * p.normal()
    lam = p.space.lam.detach()
    value = p.objective.train_loss(p.x, p.y, eps)
    delta = eps if p.method.centered else lam + eps
    norms = dense_squared_norm(p.model, p.response, delta, biases)
    oracle = p.dense_loss(delta) + (0.5 * strength(lam + eps) * norms / 4.0).mean()
    assert_close(value, oracle)
    inputs = p.theta if p.method.split else p.weights + p.theta  # w₀ of a split method is tested below
    assert_all_close(grad(value, inputs), grad(oracle, inputs))


@NETS
@METHODS
def test_unperturbed_train_loss_and_weight_gradients_equal_oracle(network, method):
    p = Problem(network, method, penalty=[L2("decay")])
    lam = p.space.lam.detach()
    value = p.objective.train_loss(p.x, p.y)
    if p.method.centered:  # Eqn. 3.9: no response
        plain = sum(q.square().sum() for q in p.model.parameters())
        oracle = p.loss(p.model(p.x), p.y).mean() + 0.5 * strength(lam) * plain
        assert grad(value, [p.response.U])[0].count_nonzero() == 0
    else:  # Eqn. 2.6: r(λ)
        delta = lam[None].expand(len(p.x), -1)
        norm = dense_squared_norm(p.model, p.response, lam[None])[0]
        oracle = p.dense_loss(delta) + 0.5 * strength(lam) * norm
    assert_close(value, oracle)
    assert_all_close(grad(value, p.weights), grad(oracle, p.weights))


@METHODS
def test_train_loss_gives_no_gradient_to_hyperparameters(method):
    p = Problem(BY_NAME["linear"], method, penalty=[L2("decay")])
    eps = p.space.sample(len(p.x), p.generator)
    value = p.objective.train_loss(p.x, p.y, eps.detach())
    assert all(not g.any() for g in grad(value, [p.space.lam, p.space.raw_scale]))


@METHODS
@pytest.mark.parametrize(
    ("network", "loss"), [*(("linear", loss) for loss in LOSSES), ("attention", "squared-error-per-example")]
)
def test_losses_are_means_over_examples(network, method, loss):
    p = Problem(BY_NAME[network], method, loss)
    eps = p.space.scale.detach() * p.normal()
    value = p.objective.train_loss(p.x, p.y, eps)
    oracle = p.dense_loss(eps if p.method.centered else p.space.lam.detach() + eps)
    assert_close(value, oracle)
    assert_all_close(grad(value, p.theta), grad(oracle, p.theta))


@METHODS
def test_dropout_uses_the_rate_of_each_example(method):
    # Dropout acts on the input, so that the test can apply the masks: rates s(λ + ε_b), one mask per example.
    torch.manual_seed(0)
    space = HyperSpace(rate=Bounded(0.4, low=0.0, high=0.95, map="sigmoid"), idle=Unbounded(0.0)).double()
    inner = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model = nn.Sequential(Dropout("rate"), inner).double().train()
    pass_values = PassValues(space, torch.Generator().manual_seed(9))
    model[0].bind(pass_values)
    response = randomise(Response(model, 2))
    objective = Objective(model, F.cross_entropy, space, pass_values, get_method(method), response)
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    eps = torch.randn(4, 2, dtype=torch.float64)
    value = objective.train_loss(x, y, eps)
    lam = space.lam.detach()
    rate = 0.95 * torch.sigmoid(lam[0] + eps[:, 0])
    uniform = torch.rand(4, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    masked = x * (uniform >= rate[:, None]) / (1 - rate[:, None])
    delta = eps if objective.method.centered else lam + eps
    prediction = dense_prediction(model.eval(), response, delta, masked, objective.method.linearized)
    oracle = F.cross_entropy(prediction, y)
    assert_close(value, oracle)
    theta = list(response.parameters())
    assert_all_close(grad(value, theta), grad(oracle, theta))


@METHODS
@NETS
def test_at_the_first_step_only_u_has_a_gradient(network, method):
    p = Problem(network, method, new=True, penalty=[L2("decay")])
    value = p.objective.train_loss(p.x, p.y, p.space.scale.detach() * p.normal())
    slope, *directions = grad(value, p.theta)
    assert p.theta[0] is p.response.U
    assert slope.norm() > 1e-3
    assert all(not d.any() for d in directions)


# --- L_V -----------------------------------------------------------------------------------------------------------


@NETS
@METHODS
@pytest.mark.parametrize("direct", [False, True], ids=["through-response", "direct-too"])
def test_hyper_loss_and_its_gradients_equal_oracle(network, method, direct):
    p = Problem(network, method, valid_penalty=[Direct()] if direct else [])
    z = p.normal()
    lam, raw = p.space.lam, p.space.raw_scale
    value = p.objective.hyper_loss(p.x, p.y, p.space.sample(len(p.x), p.generator), TAU)
    sigma = torch.log1p(raw.exp())
    eps = sigma * z
    delta = lam - lam.detach() + eps if p.method.centered else lam + eps
    oracle = p.dense_loss(delta)
    if direct:
        norms = dense_squared_norm(p.model, p.response, delta, biases=False)
        oracle = oracle + (other(lam + eps).square() + strength(lam + eps) * norms).mean()
    oracle = oracle - TAU * (sigma.log().sum() + math.log(2 * math.pi * math.e))
    assert_close(value, oracle)
    gradients = grad(value, [lam, raw])
    for gradient, expected in zip(gradients, grad(oracle, [lam, raw]), strict=True):
        assert_close(gradient, expected)


@METHODS
def test_validation_loss_may_be_another_function(method):
    torch.manual_seed(0)
    p = Problem(BY_NAME["linear"], method)
    p.objective.valid_loss = LOSSES["squared-error-per-example"][0]
    y = torch.randn(3, 3, dtype=torch.float64)
    value = p.objective.hyper_loss(p.x, y, p.space.sample(len(p.x), p.generator), 0.0)
    eps = p.space.scale * p.normal()
    delta = eps if p.method.centered else p.space.lam + eps
    prediction = dense_prediction(p.model, p.response, delta, p.x, p.method.linearized)
    assert_close(value, (prediction - y).square().sum(1).mean())


def test_hyper_gradient_at_a_single_point_is_the_response_times_the_validation_gradient():
    # Eqn. 2.4 without perturbation: dL_V/dλ = Θᵀ ∂L_V/∂w.
    p = Problem(BY_NAME["linear"], "delta-stn")
    eps = torch.zeros(len(p.x), 2, dtype=torch.float64)
    (gradient,) = grad(p.objective.hyper_loss(p.x, p.y, eps, 0.0), [p.space.lam])
    slopes = grad(F.cross_entropy(p.model(p.x), p.y), list(p.model.parameters()))
    expected = []
    for axis in torch.eye(2, dtype=torch.float64):
        moved = p.response.fold(axis)
        pairs = zip(p.model.named_parameters(), slopes, strict=True)
        expected.append(sum(((moved[name] - w) * slope).sum() for (name, w), slope in pairs))
    assert_close(gradient, torch.stack(expected).detach())


def test_a_loss_of_another_shape_is_refused():
    p = Problem(BY_NAME["linear"], "delta-stn")
    p.objective.loss = lambda output, target: output
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        p.objective.train_loss(p.x, p.y)


# --- steps ---------------------------------------------------------------------------------------------------------


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, "momentum": 0.9, **options})


def fixed_steps(model, penalty=()):
    space = HyperSpace(decay=Positive(DECAY)).double()
    objective = Objective(model, F.cross_entropy, space, PassValues(space), get_method("fixed"), None, penalty=penalty)
    return Steps(objective, sgd(model.parameters()))


def batches(network, steps=20):
    _, x = network(batch=6)
    torch.manual_seed(3)
    out = BY_NAME[network.name]()[0](x[:1]).shape[1]
    return [(x.roll(i, 0), torch.randint(0, out, (6,))) for i in range(steps)]


@pytest.mark.parametrize("name", ["linear", "conv2d-circular-stride", "embedding-padding", "batchnorm2d", "residual"])
def test_fixed_is_plain_sgd_bit_for_bit(name):
    model, _ = BY_NAME[name]()
    model.train()
    twin = copy.deepcopy(model)
    steps, optimizer = fixed_steps(model), sgd(twin.parameters())
    for x, y in batches(BY_NAME[name]):
        loss = steps.train_step(x, y)
        optimizer.zero_grad()
        expected = F.cross_entropy(twin(x), y)
        expected.backward()
        optimizer.step()
        assert torch.equal(loss, expected)
    ours, theirs = model.state_dict(), twin.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_l2_is_the_weight_decay_of_sgd():
    model, _ = BY_NAME["linear"]()
    twin = copy.deepcopy(model)
    steps, optimizer = fixed_steps(model, penalty=[L2("decay")]), sgd(twin.parameters(), weight_decay=DECAY)
    # λ = log(decay) was rounded to float32 before `.double()`, so the test sets the exact constant.
    steps.objective.constant = torch.tensor([DECAY], dtype=torch.float64)
    for x, y in batches(BY_NAME["linear"]):
        steps.train_step(x, y)
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
    assert_all_close(model.parameters(), twin.parameters(), rtol=1e-12)


def all_steps(p, **options):
    return Steps(
        p.objective,
        sgd(p.weights),
        sgd(p.theta),
        torch.optim.SGD([p.space.lam, p.space.raw_scale], lr=0.05),
        StepOptions(entropy_weight=TAU, **options),
    )


@pytest.mark.parametrize("method", ["centered-stn", "delta-stn"])
def test_split_step_moves_the_weights_without_perturbation_then_theta_at_the_updated_weights(method):
    p = Problem(BY_NAME["linear"], method, penalty=[L2("decay")])
    lam, sigma = p.space.lam.detach(), p.space.scale.detach()
    before = [w.detach().clone() for w in p.weights]
    plain = p.loss(p.model(p.x), p.y) + 0.5 * strength(lam) * sum(w.square().sum() for w in p.weights)
    expected = [w - 0.1 * g for w, g in zip(before, grad(plain, p.weights), strict=True)]
    theta = [t.detach().clone() for t in p.theta]
    all_steps(p).train_step(p.x, p.y)
    assert_all_close([w.detach() for w in p.weights], expected)
    moved = [t.detach().clone() for t in p.theta]
    with torch.no_grad():
        for parameter, value in zip(p.theta, theta, strict=True):
            parameter.copy_(value)
    eps = sigma * p.normal()
    norms = dense_squared_norm(p.model, p.response, eps)
    oracle = p.dense_loss(eps) + (0.5 * strength(lam + eps) * norms).mean()
    expected = [t - 0.1 * g for t, g in zip(theta, grad(oracle, p.theta), strict=True)]
    assert_all_close(moved, expected)


def test_stn_step_moves_weights_and_theta_on_one_perturbed_pass():
    p = Problem(BY_NAME["linear"], "stn", penalty=[L2("decay")])
    lam = p.space.lam.detach()
    delta = lam + p.space.scale.detach() * p.normal()
    oracle = p.dense_loss(delta) + (0.5 * strength(delta) * dense_squared_norm(p.model, p.response, delta)).mean()
    both = p.weights + p.theta
    expected = [t.detach() - 0.1 * g for t, g in zip(both, grad(oracle, both), strict=True)]
    all_steps(p).train_step(p.x, p.y)
    assert_all_close([t.detach() for t in both], expected)


@METHODS
@pytest.mark.parametrize("tune_scale", [True, False])
def test_hyper_step_moves_only_the_hyperparameters(method, tune_scale):
    p = Problem(BY_NAME["linear"], method)
    still = [t.detach().clone() for t in p.weights + p.theta]
    start = [p.space.lam.detach().clone(), p.space.raw_scale.detach().clone()]
    eps = p.space.scale * p.normal()
    lam = p.space.lam
    oracle = p.dense_loss(lam - lam.detach() + eps if p.method.centered else lam + eps)
    oracle = oracle - TAU * p.space.scale.log().sum()
    slopes = grad(oracle, [lam, p.space.raw_scale])
    all_steps(p, tune_scale=tune_scale).hyper_step(p.x, p.y)
    assert_close(lam.detach(), start[0] - 0.05 * slopes[0])
    expected = start[1] - 0.05 * slopes[1] if tune_scale else start[1]
    assert_close(p.space.raw_scale.detach(), expected)
    assert all(torch.equal(now, was) for now, was in zip(p.weights + p.theta, still, strict=True))
    assert all(t.requires_grad and t.grad is None for t in p.weights + p.theta)


@pytest.mark.parametrize("method", ["centered-stn", "delta-stn"])
def test_response_fraction_uses_a_share_of_the_minibatch(method):
    half, whole = (Problem(BY_NAME["linear"], method, seed=1) for _ in range(2))
    for p in (half, whole):
        p.x, p.y = p.x.repeat(2, 1)[:4], p.y.repeat(2)[:4]
    all_steps(half, response_fraction=0.5).train_step(half.x, half.y)
    reference = all_steps(whole)
    reference._move(
        reference.weights_optimizer,
        whole.weights,
        grad(whole.objective.train_loss(whole.x, whole.y), whole.weights),
        None,
    )
    chosen = window(4, 2, whole.generator)
    reference.response_step(whole.x[chosen], whole.y[chosen])
    assert all(torch.equal(a, b) for a, b in zip(half.weights + half.theta, whole.weights + whole.theta, strict=True))


@pytest.mark.parametrize("method", ["centered-stn", "delta-stn"])
@pytest.mark.parametrize(("fraction", "pairs"), [(1.0, 4), (0.9, 3), (0.5, 2)])
def test_antithetic_response_step_takes_each_example_under_opposite_perturbations(method, fraction, pairs):
    stepped, whole = (Problem(BY_NAME["linear"], method, seed=1) for _ in range(2))
    for p in (stepped, whole):
        p.x, p.y = p.x.repeat(3, 1)[:8], p.y.repeat(3)[:8]
    all_steps(stepped, response_fraction=fraction, antithetic=True).response_step(stepped.x, stepped.y)
    generator = torch.Generator().manual_seed(5)
    chosen = window(8, pairs, generator)
    eps = whole.space.sample(pairs, generator).detach()
    losses = [whole.objective.train_loss(whole.x[chosen], whole.y[chosen], sign * eps) for sign in (1, -1)]
    expected = [
        t.detach() - 0.1 * (plus + minus) / 2
        for t, plus, minus in zip(whole.theta, *(grad(loss, whole.theta) for loss in losses), strict=True)
    ]
    assert_all_close([t.detach() for t in stepped.theta], expected)


@pytest.mark.parametrize("options", [{}, {"antithetic": True}, {"response_fraction": 0.5, "antithetic": True}], ids=str)
def test_workers_weigh_their_gradient_of_theta_by_their_share_of_the_minibatch(options):
    # A worker with three rows has no pairs; its rows must not count more than those of a worker with pairs.
    shares = {}
    for count in (3, 9):
        p = Problem(BY_NAME["linear"], "delta-stn", seed=1)
        x, y = p.x.repeat(3, 1)[:count], p.y.repeat(3)[:count]
        steps = all_steps(p, **options)
        steps.workers = SimpleNamespace(mean=lambda found, like, weight, count=count: shares.update({count: weight}))
        steps.response_gradients(x, y)
    fraction = options.get("response_fraction", 1.0)
    assert shares == {count: round(fraction * count) for count in (3, 9)}


@pytest.mark.parametrize(("fraction", "per"), [(0.25, "example"), (1.0, "batch")])
def test_small_shares_and_shared_perturbations_are_not_paired(fraction, per):
    found = {}
    for antithetic in (False, True):
        p = Problem(BY_NAME["linear"], "delta-stn", seed=1)
        p.x, p.y = p.x.repeat(3, 1)[:8], p.y.repeat(3)[:8]
        if per == "batch":
            p.space = p.objective.space = HyperSpace(
                decay=Positive(DECAY, per="batch"), other=Positive(1.0, per="batch")
            )
            p.space.double()
        p.generator.manual_seed(5)
        found[antithetic] = all_steps(p, response_fraction=fraction, antithetic=antithetic).response_gradients(p.x, p.y)
    assert all(torch.equal(a, b) for a, b in zip(*found.values(), strict=True))


def test_pairs_do_not_move_a_new_response_if_no_regulariser_reads_the_hyperparameters():
    moved = {}
    for antithetic in (False, True):
        p = Problem(BY_NAME["linear"], "delta-stn", seed=1, new=True)  # Δw = 0
        p.x, p.y = p.x.repeat(3, 1)[:8], p.y.repeat(3)[:8]
        before = [t.detach().clone() for t in p.theta]
        all_steps(p, antithetic=antithetic).response_step(p.x, p.y)
        moved[antithetic] = max((t - b).abs().max().item() for t, b in zip(p.theta, before, strict=True))
    assert moved[True] < 1e-15 < 1e-3 < moved[False]


def test_clipping_bounds_the_norm_of_each_move():
    p = Problem(BY_NAME["linear"], "delta-stn")
    before = [t.detach().clone() for t in p.weights + p.theta]
    all_steps(p, clip_grad=1e-3).train_step(p.x, p.y)
    count = len(p.weights)
    moves = [(a.detach() - b).flatten() for a, b in zip(p.weights + p.theta, before, strict=True)]
    for group in (moves[:count], moves[count:]):
        assert torch.cat(group).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-4)
