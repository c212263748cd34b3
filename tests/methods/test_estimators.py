"""How Θ's gradient and the hyper step are estimated: perturbations, sub-batches, and the pass of a hyper step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ray_deltastn.domains import Bounded, Positive
from ray_deltastn.methods import Objective, StepOptions, Steps, get_method
from ray_deltastn.regularizers import L2, Dropout, PassValues
from ray_deltastn.response import Response
from ray_deltastn.space import HyperSpace
from tests.oracles import assert_all_close, assert_close, grad, randomise, window


class Problem:
    """A small network in float64 with dropout and weight decay, at random Θ, in training mode."""

    def __init__(self, method="delta-stn", norm=None, rows=8, scale=0.5, per="example"):
        torch.manual_seed(0)
        middle = [norm] if norm is not None else []
        rate = Bounded(0.3, high=0.9, scale=scale, per=per)
        self.space = HyperSpace(rate=rate, decay=Positive(0.03, scale=scale, per=per)).double()
        self.model = nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), Dropout("rate"), nn.Linear(5, 3)).double()
        values = PassValues(self.space, torch.Generator().manual_seed(5))
        for layer in self.model:
            if isinstance(layer, Dropout):
                layer.bind(values)
        self.response = randomise(Response(self.model, 2))
        self.objective = Objective(
            self.model, F.cross_entropy, self.space, values, get_method(method), self.response, penalty=[L2("decay")]
        )
        self.x, self.y = torch.randn(rows, 4).double(), torch.randint(0, 3, (rows,))
        self.theta = list(self.response.parameters())

    def steps(self, **options):
        optimizers = (torch.optim.SGD(list(p), lr=0.1) for p in (self.model.parameters(), self.theta, [self.space.lam]))
        return Steps(self.objective, *optimizers, StepOptions(tune_scale=False, **options))

    def loss(self, x, y, eps):
        """L_T(λ + ε, w₀ + Θε), with the masks that the step draws next."""
        return self.objective.train_loss(x, y, eps)

    def same_random_numbers(self):
        self.objective.generator.manual_seed(5)


BOTH = pytest.mark.parametrize("method", ["centered-stn", "delta-stn"])


@BOTH
@pytest.mark.parametrize(("fraction", "antithetic"), [(1.0, False), (0.5, False), (1.0, True)])
def test_each_example_trains_theta_under_each_of_its_perturbations(method, fraction, antithetic):
    p = Problem(method)
    options = {"perturbations": 3, "response_fraction": fraction, "antithetic": antithetic}
    found = p.steps(**options).response_gradients(p.x, p.y)
    p.same_random_numbers()
    examples = round(8 * fraction) // (2 if antithetic else 1)
    copies = 3 * (2 if antithetic else 1)
    chosen = window(8, examples, p.objective.generator)
    with torch.no_grad():
        eps = p.space.sample(copies * examples, p.objective.generator, antithetic)
    if antithetic:
        assert torch.equal(eps[: 3 * examples], -eps[3 * examples :])
    x, y = p.x[chosen].repeat(copies, 1), p.y[chosen].repeat(copies)
    assert_all_close(found, grad(p.loss(x, y, eps), p.theta))


@pytest.mark.parametrize(
    "options", [{"antithetic": True}, {"response_fraction": 0.5}, {"response_fraction": 0.3}], ids=str
)
def test_each_place_in_the_minibatch_trains_theta_in_its_turn(options):
    """Sequences of a corpus stand at the same place in each minibatch, as do the rows of a loader without shuffling."""
    p = Problem(rows=10)
    seen = []
    p.model[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    steps = p.steps(**options)
    for _ in range(600):
        steps.response_gradients(p.x, p.y)
    share = torch.stack([torch.stack([(x == row).all(1).any() for row in p.x]) for x in seen]).double().mean(0)
    expected = round(10 * options.get("response_fraction", 0.5)) / 10
    assert share.sub(expected).abs().max() < 4 * (expected * (1 - expected) / 600) ** 0.5  # four standard errors


def test_more_perturbations_give_less_noise():
    variances = []
    for count in (1, 8):
        p = Problem()
        steps = p.steps(perturbations=count)
        found = [torch.cat([g.flatten() for g in steps.response_gradients(p.x, p.y)]) for _ in range(200)]
        variances.append(torch.stack(found).var(0).sum().item())
    # The masks are drawn again for each copy too, so all of the noise falls with the number of copies.
    assert variances[0] / variances[1] == pytest.approx(8, rel=0.35)


@BOTH
@pytest.mark.parametrize("antithetic", [False, True])
def test_examples_of_a_sub_batch_share_one_perturbation(method, antithetic):
    p = Problem(method, rows=7)
    found = p.steps(sub_batches=3, antithetic=antithetic).response_gradients(p.x, p.y)
    p.same_random_numbers()
    expected, drawn = [torch.zeros_like(t) for t in p.theta], []
    for index, rows in enumerate(torch.arange(7).tensor_split(3)):
        opposite = antithetic and index == 1
        if not opposite:
            drawn.append(p.space.sample(1, p.objective.generator).detach())
        eps = (-drawn[-1] if opposite else drawn[-1]).expand(len(rows), -1)
        part = grad(p.loss(p.x[rows], p.y[rows], eps), p.theta)
        expected = [one + g * len(rows) / 7 for one, g in zip(expected, part, strict=True)]
    assert_all_close(found, expected)


def test_sub_batches_have_at_least_two_examples():
    p = Problem(norm=nn.BatchNorm1d(5), rows=5)
    seen = []
    p.model[0].register_forward_pre_hook(lambda layer, args: seen.append(len(args[0])))
    p.steps(sub_batches=8).response_gradients(p.x, p.y)
    assert seen == [3, 2]


@BOTH
@pytest.mark.parametrize("most", [None, 1e-3])
def test_theta_may_be_trained_as_the_response_to_perturbations_of_unit_scale(method, most):
    # A step in Θ̃ = Θ·diag(σ) moves Θ̃ by g/σ, so it moves U by g/σ². The norm that is clipped is that of Θ̃'s gradient.
    p = Problem(method, scale=0.2)
    sigma = p.space.scale.detach()
    steps = p.steps(per_scale=True, response_clip=most)
    gradients = steps.response_gradients(p.x, p.y)
    p.same_random_numbers()
    before = [t.detach().clone() for t in p.theta]
    steps.response_step(p.x, p.y)
    is_u = [t is p.response.U for t in p.theta]
    unit = [g / sigma if u else g for g, u in zip(gradients, is_u, strict=True)]
    norm = torch.stack([g.norm() for g in unit]).norm().item()
    factor = 1.0 if most is None else min(1.0, most / norm)
    expected = [b - 0.1 * factor * (g / sigma if u else g) for b, g, u in zip(before, unit, is_u, strict=True)]
    assert_all_close([t.detach() for t in p.theta], expected)
    assert (factor < 1) is (most is not None)


# --- batch normalisation ---------------------------------------------------------------------------------------------


def before_a_normalisation(shared):
    """Gradient of U's rows of a layer before batch normalisation, if they move along W₀ itself (W_resp = W₀)."""
    p = Problem(norm=nn.BatchNorm1d(5, eps=1e-12), rows=16)
    slot = next(slot for slot in p.response.slots if slot.name == "0.weight")
    bias = next(slot for slot in p.response.slots if slot.name == "0.bias")
    with torch.no_grad():
        p.response.direction(slot).copy_(p.model[0].weight)
        p.response.U[bias.start : bias.stop] = 0.0  # a bias has no effect before a normalisation
    p.objective.penalty = ()
    p.model.train()
    found = p.steps(sub_batches=4 if shared else 1).response_gradients(p.x, p.y)
    names = [name for name, _ in p.response.named_parameters()]
    U = found[names.index("U")]
    return (U[slot.start : slot.stop].norm() / U.norm()).item()


def test_rows_before_a_normalisation_are_free_of_scale_if_the_sub_batch_shares_its_perturbation():
    # The output does not depend on the scale of these rows, so that the best response along W₀ is zero, and no
    # gradient must move it. With a perturbation for each example the statistics do not follow the scale.
    assert before_a_normalisation(shared=True) < 1e-9
    assert before_a_normalisation(shared=False) > 1e-2


# --- the pass of a hyper step ----------------------------------------------------------------------------------------


def hyper_gradient(p, how, eps=None):
    """Gradient of λ of one hyper step, from the step itself: SGD with rate 0.1."""
    p.model.eval()
    p.same_random_numbers()
    before = p.space.lam.detach().clone()
    p.steps(hyper_pass=how).hyper_step(p.x, p.y)
    return (before - p.space.lam.detach()) / 0.1


def test_a_hyper_step_may_use_the_network_itself():
    p = Problem()
    p.model.eval()
    p.same_random_numbers()
    eps = p.space.sample(len(p.x), p.objective.generator).detach()
    zero = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    outputs = [
        functional_call(p.model, p.response.fold(zero + row), (x[None],)) for x, row in zip(p.x, eps, strict=True)
    ]
    expected = grad(F.cross_entropy(torch.cat(outputs), p.y), [zero])[0]
    assert_close(hyper_gradient(p, "network"), expected)


def test_an_unperturbed_hyper_step_is_the_response_times_the_validation_gradient():
    # Eqn. 2.4 without direct gradient.
    p = Problem()
    p.model.eval()
    slopes = grad(F.cross_entropy(p.model(p.x), p.y), list(p.model.parameters()))
    expected = []
    for axis in torch.eye(2, dtype=torch.float64):
        moved = p.response.fold(axis)
        pairs = zip(p.model.named_parameters(), slopes, strict=True)
        expected.append(sum(((moved[name] - w) * slope).sum() for (name, w), slope in pairs))
    assert_close(hyper_gradient(p, "unperturbed"), torch.stack(expected).detach())


def test_all_passes_agree_for_small_perturbations_and_differ_for_large_ones():
    small = {how: hyper_gradient(Problem(scale=1e-7), how) for how in ("linearized", "network", "unperturbed")}
    assert_close(small["linearized"], small["unperturbed"], rtol=1e-5)
    assert_close(small["network"], small["unperturbed"], rtol=1e-5)
    large = {how: hyper_gradient(Problem(scale=1.0), how) for how in small}
    assert (large["linearized"] - large["network"]).norm() > 0.05 * large["network"].norm()


def test_a_method_that_does_not_linearise_uses_the_network_anyway():
    one, other = (hyper_gradient(Problem("centered-stn"), how) for how in ("linearized", "network"))
    assert torch.equal(one, other)
