"""Exact solutions, the Jacobian and the hypergradient read from a tuner, and the Jacobian that Δ-STN learns."""

import json

import numpy as np
import pytest
import torch

from benchmarks import toy_response as toy
from benchmarks.common import toy_jacobian
from benchmarks.common.toy_data import load, split

BOTH = pytest.mark.parametrize("kind", toy.KINDS)


def exact(kind, rows_per_dim=4):
    return toy.Exact(kind, split(*load("diabetes"), seed=0, rows_per_dim=rows_per_dim))


def some_lam(problem):
    return problem.lam + torch.linspace(-0.7, 0.9, len(problem.lam)).double()


def tuned(kind, method, linear=True, sigma=0.7):
    """A tuner in float64 whose response is not zero."""
    task = exact(kind).task(seed=0, sigma=sigma, linear=linear)
    tuner = toy.rd.SelfTuner(task, method, preset="paper", device="cpu")
    for part in (tuner.model, tuner.response, tuner.space):
        part.double()
    torch.manual_seed(0)
    torch.nn.init.normal_(tuner.response.U, std=0.3)
    return tuner


@BOTH
def test_jacobian_and_hypergradient_agree_with_finite_differences(kind):
    problem, h = exact(kind), 1e-5
    lam = some_lam(problem)
    for m, step in enumerate(h * torch.eye(len(lam)).double()):
        central = (problem.best_response(lam + step) - problem.best_response(lam - step)) / (2 * h)
        torch.testing.assert_close(problem.response_jacobian(lam)[:, m], central, rtol=1e-6, atol=1e-9)
        ends = [problem.problem.valid_loss(problem.best_response(lam + s)) for s in (step, -step)]
        slope = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close(problem.hypergradient(lam)[m], slope, rtol=1e-5, atol=1e-9)


def test_ridge_agrees_with_the_toy_problem():
    ridge = exact("ridge")
    torch.testing.assert_close(ridge.response_jacobian(ridge.lam)[:, 0], ridge.problem.response_jacobian(ridge.lam)[0])
    torch.testing.assert_close(ridge.hypergradient(ridge.lam), ridge.problem.hypergradient(ridge.lam))


@BOTH
@pytest.mark.parametrize("joint", [False, True], ids=["split", "joint"])
def test_limit_is_where_the_perturbed_loss_is_stationary(kind, joint):
    problem, sigma = exact(kind), 0.8
    lam = some_lam(problem)
    v, jacobian = (part.requires_grad_() for part in problem.limit(lam, sigma, joint))
    # The loss is e^(linear in ε) times a quadratic. Each g_j depends on one ε, so Gauss-Hermite in one ε is enough.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = torch.from_numpy(weights / weights.sum())
    data = problem.data
    fit = 0.5 * (data.x @ v - data.t).square().mean()
    fit = fit + 0.5 * sigma**2 * (data.x @ jacobian).square().sum(-1).mean()  # expectation of the data term over ε
    own = (problem.groups @ torch.arange(len(lam)).double()).long()  # the hyperparameter of each feature
    penalty = torch.zeros(()).double()
    for j, k in enumerate(own):
        eps = sigma * torch.from_numpy(nodes)
        others = jacobian[j].square().sum() - jacobian[j, k].square()
        moved = (v[j] + jacobian[j, k] * eps).square() + sigma**2 * others
        penalty = penalty + 0.5 * (weights * (lam[k] + eps).exp() / problem.divisor * moved).sum()
    by_v, by_jacobian = torch.autograd.grad(fit + penalty, (v, jacobian))
    assert by_jacobian.abs().max() < 1e-11
    assert (by_v.abs().max() < 1e-11) == joint


@BOTH
def test_limit_tends_to_the_jacobian(kind):
    problem = exact(kind)
    for joint in (False, True):
        v, jacobian = problem.limit(problem.lam, 1e-5, joint)
        torch.testing.assert_close(v, problem.best_response(problem.lam), rtol=1e-8, atol=0)
        torch.testing.assert_close(jacobian, problem.response_jacobian(problem.lam), rtol=1e-8, atol=0)


@BOTH
@pytest.mark.parametrize("method", ["stn", "delta-stn"])
def test_learned_jacobian_is_the_finite_difference_of_the_folded_network(kind, method):
    tuner = tuned(kind, method)
    lam, h = tuner.space.lam.detach(), 1e-5
    origin = lam if method == "stn" else torch.zeros_like(lam)
    found = toy_jacobian.learned_jacobian(tuner)
    for m, step in enumerate(h * torch.eye(len(lam)).double()):
        ends = []
        for moved in (origin + step, origin - step):
            weights = [weight.detach() for weight in tuner.response.fold(moved).values()]
            ends.append(torch.linalg.multi_dot([*reversed(weights)])[0] if len(weights) > 1 else weights[0][0])
        torch.testing.assert_close(found[:, m], (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-9)


@BOTH
@pytest.mark.parametrize("method", ["stn", "centered-stn", "delta-stn"])
def test_hyper_step_gradient_is_the_jacobian_applied_to_the_validation_gradient(kind, method):
    tuner, problem = tuned(kind, method), exact(kind)
    v = toy_jacobian.linear_map(tuner).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.problem.valid_loss(v), v)
    found = toy_jacobian.learned_hypergradient(tuner, problem.data)
    torch.testing.assert_close(found, toy_jacobian.learned_jacobian(tuner).T @ gradient, rtol=1e-8, atol=1e-12)


def test_linear_penalty_uses_the_linearised_map():
    tuner = tuned("network", "delta-stn")
    problem = exact("network")
    eps = 0.5 * torch.randn(3, len(problem.lam), generator=torch.Generator().manual_seed(1)).double()
    v = toy_jacobian.linear_map(tuner) + eps @ toy_jacobian.learned_jacobian(tuner).T  # (3, d)
    x, t = problem.data.x[:3], problem.data.t[:3]
    strengths = (tuner.space.lam.detach() + eps).exp()
    expected = 0.5 * ((x * v).sum(-1) - t).square() + 0.5 * (strengths * v.square()).sum(-1)
    torch.testing.assert_close(tuner.objective.train_loss(x, t[:, None], eps), expected.mean(), rtol=1e-6, atol=0)


def test_dense_penalty_uses_the_displaced_network():
    tuner = tuned("network", "centered-stn", linear=False)
    eps = torch.linspace(-0.5, 0.5, 10).double()
    x, t = exact("network").data.x[:1], exact("network").data.t[:1, None]
    v = toy_jacobian.linear_map(tuner, eps)
    strengths = (tuner.space.lam.detach() + eps).exp()
    expected = 0.5 * (x @ v - t[0]).square().sum() + 0.5 * (strengths * v.square()).sum()
    torch.testing.assert_close(tuner.objective.train_loss(x, t, eps[None]), expected, rtol=1e-6, atol=0)


def test_delta_stn_learns_the_jacobian_of_ridge_up_to_its_bias():
    problem = exact("ridge", rows_per_dim=None)
    row = toy.measure(problem, "delta-stn", 1.0, 0, steps=1200)
    assert row["jacobian_error"][-1] < 1.3 * row["limit_error"] < 0.33
    assert row["jacobian_cosine"][-1] > 0.98
    assert row["steps"][-1] == 1200


def test_command_writes_rows_and_a_picture(tmp_path):
    out, picture = tmp_path / "new" / "rows.json", tmp_path / "toy.png"
    toy.main(["--sigmas", "0.5", "--seeds", "1", "--steps", "20", "--json", str(out), "--plot", str(picture)])
    record = json.loads(out.read_text())
    assert list(record) == ["command", "summary", "versions", "rows"]
    rows = record["rows"]
    lines = [*[("ridge", line) for line in list(toy.LINES)[:3]], *[("network", line) for line in toy.LINES]]
    assert [(row["problem"], row["method"]) for row in rows] == lines
    for row in rows:
        assert row["steps"][0] == 10
        assert row["steps"][-1] == 20
        assert len(row["jacobian_error"]) == len(row["hypergradient_cosine"]) == len(row["steps"])
    assert picture.stat().st_size > 10_000
    assert [(e["problem"], e["method"], e["n"]) for e in record["summary"]] == [(*line, 1) for line in lines]
    assert record["summary"][0]["jacobian_error"]["median"] == rows[0]["jacobian_error"][-1]
    bare, again = tmp_path / "bare.json", tmp_path / "again.png"
    bare.write_text(json.dumps(rows))
    toy.main(["--rows", str(bare), "--json", str(bare), "--plot", str(again)])
    assert json.loads(bare.read_text()) == {**record, "command": None}
    assert again.read_bytes() == picture.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--methods fixed", "`--methods` must be names from stn"),
        ("--problem other", "`problem` must be one of ridge, network, got 'other'"),
        ("--problem ridge --methods delta-stn-dense", "must include network for 'delta-stn-dense'"),
        ("--seeds 0", "argument --seeds: must be a whole number >= 1, got '0'"),
        ("--sigmas 0", "argument --sigmas: must be a finite number > 0, got '0'"),
        ("--sigmas 0.5,x", "argument --sigmas: must be a finite number > 0, got 'x'"),
        ("--steps 0", "argument --steps: must be a whole number >= 1, got '0'"),
        ("--rows nowhere.json", "`nowhere.json` must contain a record in JSON"),
    ],
)
def test_wrong_arguments_end_with_one_error_line(arguments, message, refusal):
    assert message in refusal(toy.main, *arguments.split())
