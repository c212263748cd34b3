"""The limit of training on problems with a closed form: Theorem 3 and Appendix G.

| symbol  | meaning                                                         |
|---------|-----------------------------------------------------------------|
| A, B    | ∂²L_T/∂w² and ∂²L_T/∂w∂λ; the best response moves by −A⁻¹B      |
| M       | XᵀX + λ₀I, so that A = M/n for ridge regression (G.1)           |
"""

import pytest
import torch
from torch import nn

from ray_deltastn.domains import Unbounded
from ray_deltastn.methods import Method, Objective, Steps, get_method
from ray_deltastn.regularizers import L2, PassValues
from ray_deltastn.response import Response
from ray_deltastn.space import HyperSpace

ROWS, FEATURES, COPIES = 16, 3, 512
LAM, SIGMA = 1.5, 1.0
SPLIT = pytest.mark.parametrize("method", ["centered-stn", "delta-stn"])


def squared_error(output, target):
    return 0.5 * (output - target).square().sum(1)


def regression(outputs):
    """X (n, d) with singular values of order 1, and targets (n, outputs)."""
    torch.manual_seed(0)
    X = torch.linalg.qr(torch.randn(ROWS, FEATURES, dtype=torch.float64)).Q * torch.tensor([0.7, 1.2, 1.6])
    return X, 0.5 * torch.randn(ROWS, outputs, dtype=torch.float64)


def train(method, space, X, target, penalty, weights, weights_lr, steps=300, lr=2.0):
    """Run train steps on many copies of the full batch, which average over ε, and return model and response.

    The learning rates fall during training, so that the noise of ε falls too.
    """
    torch.manual_seed(1)
    model = nn.Linear(FEATURES, target.shape[1], bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weights)
    space = space.double()
    response = Response(model, len(space), torch.Generator().manual_seed(2))
    pass_values = PassValues(space, torch.Generator().manual_seed(3))
    objective = Objective(model, squared_error, space, pass_values, get_method(method), response, penalty=[penalty])
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=weights_lr, momentum=0.9),
        torch.optim.SGD(response.parameters(), lr=lr, momentum=0.9),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda t: (1 - t / steps) ** 2) for o in optimizers]
    stepper = Steps(objective, *optimizers)
    x, y = X.repeat(COPIES, 1), target.repeat(COPIES, 1)
    for _ in range(steps):
        stepper.train_step(x, y)
        for schedule in schedules:
            schedule.step()
    return model, response


def relative(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


def slope(model, response):
    """Θ as a dense Jacobian (h, outputs, features)."""
    axes = torch.eye(response.U.shape[1], dtype=torch.float64)
    return torch.stack([response.fold(axis)["weight"] - model.weight for axis in axes]).detach()


# --- Theorem 3 -----------------------------------------------------------------------------------------------------


class Coupling:
    """Σ_r (m_r·λ)(c_r·w_r) for the rows w_r of a linear layer: with the squared error, L_T is quadratic in (w, λ).

    Row r of the best response moves by −A⁻¹ c_r m_rᵀ, which the structure (Uδ) ⊙_row W_resp can express.
    """

    names = ("a", "b")
    directions = torch.tensor([[1.0, -0.5, 0.3], [0.4, 0.8, -1.0]], dtype=torch.float64)  # c_r
    mixture = torch.tensor([[0.8, -0.6], [0.3, 1.0]], dtype=torch.float64)  # m_r

    def __call__(self, values, weights):
        lam = torch.stack([values["a"], values["b"]], -1)
        base = (weights.model.weight * self.directions).sum(1)
        if weights.delta is not None:
            (slot,) = weights.response.slots
            along = (weights.response.direction(slot) * self.directions).sum(1)
            base = base + weights.response.row_change(weights.delta) * along
        return ((lam @ self.mixture.T) * base).sum(-1)


@SPLIT
@pytest.mark.parametrize("start", [0.0, 1.0], ids=["from-zero", "anywhere"])
def test_theta_converges_to_the_best_response_jacobian(method, start):
    # Theorem 3 holds for any fixed w₀; two hyperparameters, two rows.
    X, target = regression(2)
    X = X * ROWS**0.5  # A has eigenvalues 0.49, 1.44 and 2.56
    penalty = Coupling()
    space = HyperSpace(a=Unbounded(0.4, scale=0.8), b=Unbounded(-0.2, scale=1.3))
    weights = start * torch.randn(2, FEATURES, dtype=torch.float64)
    model, response = train(method, space, X, target, penalty, weights, weights_lr=0.0, lr=0.2)
    assert torch.equal(model.weight, weights)
    A = X.T @ X / ROWS
    expected = torch.stack(
        [torch.outer(penalty.mixture[r], -torch.linalg.solve(A, penalty.directions[r])) for r in range(2)], dim=1
    )  # (h, outputs, features)
    assert relative(slope(model, response), expected) <= 0.02


# --- Appendix G ----------------------------------------------------------------------------------------------------


def ridge():
    X, target = regression(1)
    M = X.T @ X + LAM * torch.eye(FEATURES, dtype=torch.float64)
    optimum = torch.linalg.solve(M, X.T @ target)[:, 0]
    space = HyperSpace(strength=Unbounded(LAM, scale=SIGMA))
    return X, target, M, optimum, space, L2("strength", divide_by=ROWS)


@SPLIT
def test_theta_at_the_ridge_solution_is_the_jacobian_of_the_solution(method):
    X, target, M, optimum, space, penalty = ridge()
    model, response = train(method, space, X, target, penalty, optimum[None], weights_lr=0.0)
    assert relative(slope(model, response)[0, 0], -torch.linalg.solve(M, optimum)) <= 0.02


@SPLIT
def test_split_training_recovers_the_ridge_solution_and_its_jacobian(method):
    X, target, M, optimum, space, penalty = ridge()
    start = torch.zeros(1, FEATURES, dtype=torch.float64)
    model, response = train(method, space, X, target, penalty, start, weights_lr=2.0)
    assert relative(model.weight.detach()[0], optimum) <= 1e-6  # (G.9): no noise of ε reaches w₀
    assert relative(slope(model, response)[0, 0], -torch.linalg.solve(M, optimum)) <= 0.02


@pytest.mark.parametrize(
    "method", [Method("joint", split=False, linearized=False), get_method("stn")], ids=["centred", "uncentred"]
)
def test_joint_training_converges_to_the_biased_weights_of_appendix_g(method):
    X, target, M, optimum, space, penalty = ridge()
    start = torch.zeros(1, FEATURES, dtype=torch.float64)
    model, response = train(method, space, X, target, penalty, start, weights_lr=2.0)
    # (G.8) inserted into (G.7) gives (I − σ²M⁻²) w₀ = M⁻¹Xᵀt.
    inverse = torch.linalg.inv(M)
    biased = torch.linalg.solve(torch.eye(FEATURES, dtype=torch.float64) - SIGMA**2 * inverse @ inverse, optimum)
    delta = torch.zeros(1) if method.centered else space.lam.detach()
    weights = response.fold(delta.double())["weight"].detach()[0]
    assert relative(biased, optimum) > 0.1
    assert relative(weights, biased) <= 0.02
    assert relative(slope(model, response)[0, 0], -inverse @ biased) <= 0.02
