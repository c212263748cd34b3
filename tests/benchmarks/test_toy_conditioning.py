"""Observations 1 and 2: the condition number of the hypernetwork's Gauss-Newton Hessian on ridge regression."""

import json

import pytest
import torch

from benchmarks import toy_conditioning as toy
from benchmarks.common.toy_problems import Problem
from tests.benchmarks.small_problems import lams, small

CASES = pytest.mark.parametrize(("lam", "sigma"), [(-4.0, 0.1), (-1.0, 1.0), (0.0, 0.5), (3.9, 0.3), (3.9, 2.0)])
EITHER = pytest.mark.parametrize("centred", [False, True])


def second_moment(lam, sigma, centred):
    """E[λ̂λ̂ᵀ] = diag(σ², 0) + λ̄λ̄ᵀ (3.5)."""
    mean = lams(0.0 if centred else lam, 1.0)
    return torch.diag(lams(sigma**2, 0.0)) + torch.outer(mean, mean)


@CASES
@EITHER
def test_hessian_of_the_squared_error_is_the_kronecker_product_of_observation_1(lam, sigma, centred):
    problem = Problem("ridge", small())
    found = toy.hessian(problem, lam, sigma, centred, penalty=False)
    expected = torch.kron(second_moment(lam, sigma, centred), problem.covariance)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@CASES
@EITHER
def test_condition_number_without_penalty_is_the_product_of_observation_2(lam, sigma, centred):
    problem = Problem("ridge", small())
    row = toy.measure(problem, lam, sigma, centred, penalty=False)
    inputs, network = (toy.condition(m) for m in (second_moment(lam, sigma, centred), problem.covariance))
    assert row["measured"] == pytest.approx(row["product"], rel=1e-5)
    assert row["product"] == pytest.approx(inputs * network, rel=1e-5)


@CASES
@EITHER
def test_condition_number_with_penalty_is_within_its_bound(lam, sigma, centred):
    problem = Problem("ridge", small(), divide=False)
    row = toy.measure(problem, lam, sigma, centred, penalty=True)
    assert 1 <= row["measured"] <= row["bound"] * (1 + 1e-5)


def test_penalty_makes_the_product_an_approximation_that_is_exact_for_a_small_scale():
    problem = Problem("ridge", small(), divide=False)
    ratios = []
    for sigma in (2.0, 1.0, 0.1, 0.01):
        row = toy.measure(problem, 1.0, sigma, True, penalty=True)
        ratios.append(row["measured"] / row["product"])
    assert abs(ratios[0] - 1) > 0.5
    assert [abs(r - 1) for r in ratios] == sorted((abs(r - 1) for r in ratios), reverse=True)
    assert ratios[-1] == pytest.approx(1, abs=1e-3)


def test_centring_matters_only_far_from_zero_and_gives_the_networks_condition_number_at_scale_one():
    problem = Problem("ridge", small())
    kappa = toy.condition(problem.covariance)
    measured = {
        (lam, centred): toy.measure(problem, lam, 1.0, centred, penalty=False)["measured"]
        for lam in (0.0, 3.9)
        for centred in (False, True)
    }
    assert measured[0.0, True] == measured[3.9, True] == pytest.approx(kappa, rel=1e-5)
    assert measured[0.0, False] == pytest.approx(kappa, rel=1e-5)
    # E[λ̂λ̂ᵀ] has trace λ² + σ² + 1 and determinant σ², so κ is close to (λ² + 2)² for σ = 1.
    assert measured[3.9, False] == pytest.approx(kappa * (3.9**2 + 2) ** 2, rel=0.01)


def test_command_writes_a_record_and_a_picture_that_is_drawn_again(tmp_path, capsys):
    file, picture = tmp_path / "c.json", tmp_path / "c.png"
    toy.main(["--lams", "0,3", "--sigmas", "0.5", "--json", str(file), "--plot", str(picture)])
    found = json.loads(file.read_text())
    assert len(found["rows"]) == 8
    exact, approximate = found["summary"]
    assert exact["measured_over_product"] == pytest.approx([1, 1], rel=1e-5)
    assert exact["gain"][0] == pytest.approx(1, rel=1e-5)
    assert approximate["gain"][1] > 10
    assert picture.stat().st_size > 10_000
    picture.unlink()
    toy.main(["--rows", str(file), "--plot", str(picture)])
    assert picture.exists()
    assert "λ₀  3.0  σ 0.5  uncentred" in capsys.readouterr().out


def test_wrong_arguments_end_with_one_error_line(refusal, tmp_path):
    assert refusal(toy.main, "--sigmas", "0") == "argument --sigmas: must be a finite number > 0, got '0'"
    assert "got 'yacht'" in refusal(toy.main, "--data", "yacht", "--data-root", str(tmp_path))
