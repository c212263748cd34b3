"""Implicit differentiation at a run's weights, against closed forms, unrolled training and a dense Hessian."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from benchmarks import images_hypergradient as look
from benchmarks.local_response import LocalModel, series
from benchmarks.toy_problems import Problem
from ray_deltastn.methods.differentiation import unroll
from tests.benchmarks.test_toy import small


def at_the_best_response(lam):
    """A ridge problem, and a plain run whose weights are w*(λ)."""
    problem = Problem("ridge", small())
    config = {"task": lambda config: problem.task(0), "method": "delta-stn", "seed": 0, "batch_size": 1000}
    tuner = look.tuner_of({**config, "epochs": 1, "lr": 0.1, "device": "cpu"})
    with torch.no_grad():
        tuner.space.lam.fill_(lam)
        tuner.model[0].weight.copy_(problem.best_response(torch.tensor([lam], dtype=torch.float64)))
    plain = look.plain_copy(tuner, {**config, "lr": 0.1, "device": "cpu"}, tuner.space.lam.detach())
    return problem, plain, tuner.space.lam.detach()


def test_many_steps_give_the_exact_hypergradient():
    problem, plain, lam = at_the_best_response(1.0)
    found = LocalModel(plain, lam, images=1000).hypergradients(0.1, 0.9, [3000], 0.05, 2)
    exact = problem.hypergradient(lam.double())
    assert found.shape == (1, 2, 1)
    assert found.flatten().tolist() == pytest.approx([exact.item()] * 2, rel=2e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_few_steps_give_the_derivative_of_unrolled_training(momentum):
    problem, plain, lam = at_the_best_response(1.0)
    found = LocalModel(plain, lam, images=1000).hypergradients(0.1, momentum, [2, 7], 0.05, 1).flatten()
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


def test_product_is_that_of_the_dense_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), rd.Dropout("rate"), nn.Linear(4, 2)).double()
    x, y = torch.randn(1100, 3, dtype=torch.float64), torch.randint(2, (1100,))
    space = rd.HyperSpace(rate=rd.Bounded(0.3, low=0.0, high=0.9), decay=rd.Positive(0.1))
    task = rd.Task(space=space, model=model, loss=F.cross_entropy, train=(x, y), valid=(x, y), penalty=rd.L2("decay"))
    plain = rd.SelfTuner(task, method="fixed", batch_size=100, device="cpu")
    near = LocalModel(plain, space.lam, images=1100, seed=3)
    assert [share for _, share in near._gradients] == pytest.approx([500 / 1100, 500 / 1100, 100 / 1100])
    total = sum(share * gradient for gradient, share in near._gradients)
    rows = [torch.autograd.grad(one, near.weights, retain_graph=True) for one in total]
    dense = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    v = torch.randn(len(dense), dtype=torch.float64)
    torch.testing.assert_close(near.product(v), dense @ v)
    torch.testing.assert_close(dense, dense.T)


def test_series_is_a_polynomial_in_the_hessian():
    torch.manual_seed(0)
    root = torch.randn(4, 4, dtype=torch.float64)
    matrix, b = root @ root.T / 4, torch.randn(4, dtype=torch.float64)
    found = series(lambda v: matrix @ v, b, 0.1, 0.0, [1, 3])
    step = torch.eye(4, dtype=torch.float64) - 0.1 * matrix
    torch.testing.assert_close(found[1], 0.1 * b)
    torch.testing.assert_close(found[3], 0.1 * (b + step @ b + step @ step @ b))
    torch.testing.assert_close(
        series(lambda v: matrix @ v, b, 0.1, 0.9, [5000])[5000], torch.linalg.solve(matrix, b), rtol=1e-5, atol=1e-8
    )


def test_every_draw_has_the_same_masks_on_both_sides_and_others_than_the_next():
    config = {"task": "tests.tune.tiny:build", "seed": 0, "epochs": 2, "batch_size": 16, "warmup": 1}
    tuner = look.tuner_of(config)
    list(tuner.fit())
    lam = tuner.space.lam.detach()
    near = LocalModel(look.plain_copy(tuner, config, lam), lam, images=16)
    constant = near.plain.objective.constant
    one, again, other = (near.mixed(0, 1.0, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # With other masks on the other side, the difference over such a shift would be of the order of a million.
    assert near.mixed(0, 1e-6, 1).abs().max() < 10
    assert torch.equal(near.plain.objective.constant, constant)
