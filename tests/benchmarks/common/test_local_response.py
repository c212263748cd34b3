"""Implicit differentiation at a run's weights, compared with closed forms, unrolled training and a dense Hessian."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from benchmarks.common import hypergradients as measure
from benchmarks.common import local_response
from benchmarks.common.local_response import LocalModel, series
from benchmarks.common.toy_problems import Problem
from ray_deltastn.methods.differentiation import unroll
from tests.benchmarks.small_problems import small


def at_the_best_response(lam):
    """A ridge problem, and a plain run whose weights are w*(λ)."""
    problem = Problem("ridge", small())
    config = {"task": lambda config: problem.task(0), "method": "delta-stn", "seed": 0, "batch_size": 1000}
    tuner = measure.tuner_of({**config, "epochs": 1, "lr": 0.1, "device": "cpu"})
    with torch.no_grad():
        tuner.space.lam.fill_(lam)
        tuner.model[0].weight.copy_(problem.best_response(torch.tensor([lam], dtype=torch.float64)))
    plain = measure.plain_copy(tuner, {**config, "lr": 0.1, "device": "cpu"}, tuner.space.lam.detach())
    return problem, plain, tuner.space.lam.detach()


@pytest.mark.parametrize("at_once", [500, 7])  # one pass, and pieces of unequal size
def test_many_steps_give_the_exact_hypergradient(at_once, monkeypatch):
    monkeypatch.setattr(local_response, "AT_ONCE", at_once)
    problem, plain, lam = at_the_best_response(1.0)
    found = LocalModel(plain, lam, images=1000).hypergradients(0.1, 0.9, [3000], 0.05, seed=0)
    assert found.shape == (1, 1)
    assert found.item() == pytest.approx(problem.hypergradient(lam.double()).item(), rel=2e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_few_steps_give_the_derivative_of_unrolled_training(momentum):
    problem, plain, lam = at_the_best_response(1.0)
    found = LocalModel(plain, lam, images=1000).hypergradients(0.1, momentum, [2, 7], 0.05, seed=0).flatten()
    x, y = (torch.cat(parts).double() for parts in zip(*plain.train.in_order(), strict=True))
    best = problem.best_response(lam.double()).detach()
    for n, expected in zip((2, 7), found, strict=True):
        at = lam.double().clone().requires_grad_()

        def loss(weights, at=at):
            error = x @ weights["w"].T - y
            return 0.5 * error.square().mean() + 0.5 * (at.exp() * weights["w"].square().sum()).sum() / len(x)

        weights = unroll({"w": best.clone().requires_grad_()}, {}, [loss] * n, [0.1] * n, momentum=momentum)
        (slope,) = torch.autograd.grad(problem.valid_loss(weights["w"]).sum(), at)
        assert expected.item() == pytest.approx(slope.item(), rel=2e-3)


def small_network(*extra):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *extra, rd.Dropout("rate"), nn.Linear(4, 2)).double()
    x, y = torch.randn(50, 3, dtype=torch.float64), torch.randint(2, (50,))
    space = rd.HyperSpace(rate=rd.Bounded(0.3, low=0.0, high=0.9), decay=rd.Positive(0.1))
    task = rd.Task(space=space, model=model, loss=F.cross_entropy, train=(x, y), valid=(x, y), penalty=rd.L2("decay"))
    return rd.SelfTuner(task, method="fixed", preset="paper", batch_size=25, device="cpu"), x, y


def test_gradient_and_product_agree_with_the_whole_objective(monkeypatch):
    monkeypatch.setattr(local_response, "AT_ONCE", 7)
    plain, x, y = small_network()
    # The dropout rate is almost zero, so every piece of the images has the same masks as the whole.
    plain.objective.constant = torch.tensor([1e-12, 0.1], dtype=torch.float64)
    near = LocalModel(plain, plain.space.lam, images=1000)
    names = list(dict(plain.model.named_parameters()))
    shapes = [p.shape for p in near.weights]

    def objective(flat):
        parts = [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        return plain.objective.train_loss(x, y, weights=dict(zip(names, parts, strict=True)))

    flat = torch.cat([p.detach().reshape(-1) for p in near.weights])
    terms = near.gradients(3)
    assert len(terms) == 8
    gradient = torch.autograd.functional.jacobian(objective, flat)
    torch.testing.assert_close(torch.stack(terms).sum(0), gradient, rtol=1e-6, atol=1e-9)
    dense = torch.autograd.functional.hessian(objective, flat)
    v = torch.randn(len(flat), dtype=torch.float64)
    torch.testing.assert_close(near.product(3)(v), dense @ v, rtol=1e-6, atol=1e-9)


def test_a_seed_draws_the_same_images_and_another_seed_draws_others():
    plain, _, _ = small_network()
    near = LocalModel(plain, plain.space.lam, images=20)
    one, again, other = (near.gradients(seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_random_numbers_of_other_layers_are_the_same_on_both_sides():
    plain, _, _ = small_network(nn.Dropout(0.3))
    near = LocalModel(plain, plain.space.lam)
    before = torch.get_rng_state()
    assert torch.equal(near.mixed(0, 1.0, 1), near.mixed(0, 1.0, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_running_statistics_do_not_change():
    plain, _, _ = small_network(nn.BatchNorm1d(4))
    near = LocalModel(plain, plain.space.lam)
    statistics = plain.model[2].running_mean.clone()
    near.hypergradients(0.1, 0.9, [2], 1.0, seed=0)
    assert torch.equal(plain.model[2].running_mean, statistics)


def test_series_is_a_polynomial_in_the_hessian():
    torch.manual_seed(0)
    root = torch.randn(4, 4, dtype=torch.float64)
    matrix, b = root @ root.T / 4, torch.randn(4, dtype=torch.float64)
    one, three = series(lambda v: matrix @ v, b, 0.1, 0.0, [1, 3])
    step = torch.eye(4, dtype=torch.float64) - 0.1 * matrix
    torch.testing.assert_close(one, 0.1 * b)
    torch.testing.assert_close(three, 0.1 * (b + step @ b + step @ step @ b))
    (many,) = series(lambda v: matrix @ v, b, 0.1, 0.9, [5000])
    torch.testing.assert_close(many, torch.linalg.solve(matrix, b), rtol=1e-5, atol=1e-8)


def test_a_draw_has_the_same_masks_on_both_sides_and_the_next_draw_has_others():
    config = {"task": "tests.tune.tiny:build", "seed": 0, "epochs": 2, "batch_size": 16, "warmup": 1}
    tuner = measure.tuner_of(config)
    list(tuner.fit())
    lam = tuner.space.lam.detach()
    near = LocalModel(measure.plain_copy(tuner, config, lam), lam, images=16)
    constant = near.plain.objective.constant
    one, again, other = (near.mixed(0, 1.0, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # With different masks on the two sides, the difference over this shift would be about a million.
    assert near.mixed(0, 1e-6, 1).abs().max() < 10
    assert torch.equal(near.plain.objective.constant, constant)


def test_steps_use_the_learning_rate_and_momentum_of_the_run():
    _, plain, lam = at_the_best_response(1.0)
    found = measure.local(plain, lam, [2, 7], 0.05, 1000, 2)
    expected = LocalModel(plain, lam, 1000).hypergradients(0.1, 0.9, [2, 7], 0.05, seed=0)
    assert found[0][0] == pytest.approx(expected[0].tolist())
    assert len(found[0]) == 2


def test_a_validation_penalty_is_refused():
    plain, _, _ = small_network()
    plain.task.valid_penalties = (rd.L2("decay"),)
    with pytest.raises(
        ValueError, match="`valid_penalty` must be empty for a comparison of validation losses, got a penalty"
    ):
        measure.check(plain)
