"""The clamped line on problems with known answers: what Θ, λ and σ converge to, in the box and on its limits."""

import pytest
import torch

import ray_deltastn as rd
from tests.training.one_weight import HIGH, Held, best, kappa, make_penalised_tuner, make_tuner, reached
from tests.training.runs import assert_same_tensors, reports_of, tensors_of

ON_A_BOUND = pytest.mark.parametrize(("start", "optimum"), [(0.0, -0.2), (HIGH, 1.2)], ids=["low", "high"])


# --- Θ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.3, 1.0])
@pytest.mark.parametrize("lam", [-2.0, 0.0, 2.0])
def test_theta_of_dropout_is_that_of_quadrature(lam, sigma):
    held = Held(lam, sigma)
    assert held.train() == pytest.approx(held.expected_slope(), rel=0.03)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
@pytest.mark.parametrize("lam", [-2.0, 0.0, 2.0])
def test_theta_for_a_constant_curvature_is_kappa_times_the_slope_of_the_line(lam, sigma):
    assert Held(lam, sigma, dropout=False).train() == pytest.approx(-kappa(lam, sigma) * HIGH / 4, rel=0.01)


@pytest.mark.parametrize("off", [0.9, 1.1])
@pytest.mark.parametrize("lam", [-2.0, 2.0])
@pytest.mark.parametrize("dropout", [False, True], ids=["constant-curvature", "dropout"])
def test_theta_on_a_bound_is_right_while_the_weight_has_not_converged(dropout, lam, off):
    # The mean of ε is zero on a bound too, so the error of w₀ does not reach Θ (Eqn. 3.8).
    held = Held(lam, 0.3, dropout, off)
    assert held.train(steps=100) == pytest.approx(held.expected_slope(), rel=0.05)
    assert held.expected_slope() < 0


# --- λ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimum", [0.0, 0.475, 0.855])
@pytest.mark.parametrize("start", [0.001, 0.5])
def test_a_rate_reaches_its_optimum(start, optimum):
    rate, _ = reached(make_tuner(start, optimum))
    assert rate == pytest.approx(optimum, abs=0.03)


@pytest.mark.parametrize("start", [0.0, 0.05, HIGH])
def test_a_rate_on_or_near_a_bound_reaches_an_optimum_inside(start):
    rate, _ = reached(make_tuner(start, 0.475))
    assert rate == pytest.approx(0.475, abs=0.03)


@pytest.mark.parametrize("start", [0.0, HIGH])
@pytest.mark.parametrize("method", ["ift", "unrolled"])
def test_methods_that_differentiate_the_line_leave_a_bound(method, start):
    rate, _ = reached(make_penalised_tuner(start, 0.4, method))
    assert rate == pytest.approx(0.4, abs=0.03)


@ON_A_BOUND
def test_a_rate_stays_exactly_on_a_bound_that_it_is_pushed_to(start, optimum):
    tuner = make_tuner(start, optimum, steps=120)
    assert [report["hyperparameters/rate"] for report in tuner.fit()] == [start] * 6
    assert abs(tuner.space.lam.item()) == 2.0


@ON_A_BOUND
def test_the_moment_of_adam_does_not_hold_a_rate_on_a_bound(start, optimum):
    tuner = make_tuner(start, optimum, steps=120, hyper_optimizer="adam")
    reports_of(tuner)
    assert tuner.space.values().item() == start
    tuner.model.eval()
    tuner.algorithm.hyper_step(torch.ones(512, 1), torch.full((512, 1), best(0.475)))  # the gradient turns
    assert 0 < tuner.space.values().item() < HIGH


# --- σ -------------------------------------------------------------------------------------------------------------


def test_sigma_on_a_bound_becomes_twice_that_of_the_middle():
    found = {}
    for lam in (-2.0, 0.0, 2.0):
        held = Held(lam, 0.4, dropout=False, entropy_weight=0.01)
        found[lam] = held.tune_scale(100)
        assert found[lam] == pytest.approx(held.expected_scale(), rel=0.05)
    assert found[-2.0] / found[0.0] == pytest.approx(2, rel=0.05)
    assert found[2.0] / found[0.0] == pytest.approx(2, rel=0.05)


def test_sigma_of_dropout_without_regularisation_is_wider_than_in_the_middle():
    found = [Held(lam, 0.4, entropy_weight=0.01) for lam in (-2.0, 0.0)]
    wide, narrow = (held.tune_scale(100) for held in found)
    assert wide == pytest.approx(found[0].expected_scale(), rel=0.05)
    assert narrow == pytest.approx(found[1].expected_scale(), rel=0.05)
    assert wide > 1.5 * narrow


def test_sigma_without_a_best_value_stops_at_two():
    # τ/c = 3.5 is above 2.55, so the derivative of Θ²σ² − τ·log σ is negative for every σ.
    curvature = 2 * (HIGH / 4) ** 2
    held = Held(0.0, 1.9, dropout=False, entropy_weight=3.5 * curvature)
    held.tune_scale(20)
    assert held.space.scale.item() == pytest.approx(2.0, rel=1e-6)


# --- captured steps ------------------------------------------------------------------------------------------------


@ON_A_BOUND
def test_captured_steps_give_the_same_bits_on_a_bound(start, optimum):
    eager, captured = (make_tuner(start, optimum, steps=100, graph=graph) for graph in ("off", "on"))
    assert reports_of(captured) == reports_of(eager)
    assert captured.algorithm.captured
    assert_same_tensors(tensors_of(captured), tensors_of(eager))
    assert eager.space.values().item() == start


def test_captured_steps_keep_a_positive_hyperparameter_in_its_search_range():
    decay = rd.Positive(0.5, search=(0.4, 0.8))
    eager, captured = (make_tuner(0.0, -0.2, steps=150, decay=decay, graph=graph) for graph in ("off", "on"))
    assert reports_of(captured) == reports_of(eager)
    assert captured.algorithm.captured
    assert_same_tensors(tensors_of(captured), tensors_of(eager))
    assert eager.hyperparameters()["decay"] == pytest.approx(0.4, rel=1e-6)
