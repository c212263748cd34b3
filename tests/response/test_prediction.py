"""The prediction of a response and its gradients equal a dense oracle, for every network."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ray_deltastn.methods.frozen import frozen
from ray_deltastn.response import Response, linearised_forward
from tests.networks import BATCH, COPIES
from tests.oracles import (
    assert_all_close,
    assert_close,
    batch_prediction,
    dense_prediction,
    dense_weights,
    grad,
    randomise,
)
from tests.response.attached import MODES, NETS, H, attached, predict


def plain(model, x):
    # As in a linearised pass. Gradients stay enabled, because fused kernels round differently.
    with sdpa_kernel(SDPBackend.MATH):
        return model(x)


@NETS
@MODES
def test_prediction_and_gradients_equal_dense_oracle(network, linearised):
    model, x, response, delta = attached(network)
    delta.requires_grad_()
    inputs = [*response.parameters(), delta]
    value = predict(model, response, delta, x, linearised)
    oracle = dense_prediction(model, response, delta, x, linearised)
    assert_close(value, oracle)
    probe = torch.randn_like(oracle)
    assert_all_close(grad((value * probe).sum(), inputs), grad((oracle * probe).sum(), inputs))


@NETS
@MODES
def test_frozen_weights_change_neither_prediction_nor_gradients(network, linearised):
    # The passes of a method freeze w₀. Some layers have fused kernels for inputs without gradients and must not use
    # them here.
    model, x, response, delta = attached(network)
    inputs = list(response.parameters())
    with frozen(model.parameters()):
        value = predict(model, response, delta, x, linearised)
        gradients = grad(value.square().sum(), inputs)
    oracle = dense_prediction(model, response, delta, x, linearised)
    assert_close(value, oracle)
    assert_all_close(gradients, grad(oracle.square().sum(), inputs))


def with_batch_statistics(kind):
    torch.manual_seed(0)
    model, x = {
        "1d": lambda: (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)), (5, 3)),
        "1d-length": lambda: (
            nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)),
            (4, 2, 4),
        ),
        "2d": lambda: (
            nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
            (4, 1, 3, 3),
        ),
        "3d": lambda: (
            nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)),
            (4, 1, 3, 3, 3),
        ),
        "two-layers": lambda: (
            nn.Sequential(
                nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
            ),
            (6, 3),
        ),
    }[kind]()
    return model.double(), torch.randn(x, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["1d", "1d-length", "2d", "3d", "two-layers"])
@pytest.mark.parametrize("statistics", ["train", "train-untracked", "eval-without-running"])
@MODES
def test_batch_normalisation_by_batch_statistics_equals_oracle(kind, statistics, linearised):
    model, x = with_batch_statistics(kind)
    for layer in model:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                layer.weight.uniform_(0.5, 2.0)
                layer.bias.normal_()
            if statistics == "train-untracked":
                layer.track_running_stats = False
            if statistics == "eval-without-running":
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    model.train(statistics != "eval-without-running")
    response = randomise(Response(model, H))
    delta = torch.randn(x.shape[0], H, dtype=torch.float64, requires_grad=True)
    inputs = [*response.parameters(), delta]
    value = predict(model, response, delta, x, linearised)
    oracle = batch_prediction(model, response, delta, x, linearised)
    assert_close(value, oracle)
    probe = torch.randn_like(oracle)
    assert_all_close(grad((value * probe).sum(), inputs), grad((oracle * probe).sum(), inputs))


@NETS
@MODES
def test_response_is_exactly_zero_at_zero_displacement(network, linearised):
    model, x, response, delta = attached(network)
    with sdpa_kernel(SDPBackend.MATH):
        same(network, predict(model, response, torch.zeros_like(delta), x, linearised), plain(model, x))


@NETS
@MODES
def test_response_of_a_new_theta_is_exactly_zero(network, linearised):
    model, x = network()
    response = Response(model, H)
    delta = torch.randn(BATCH, H, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        same(network, predict(model, response, delta, x, linearised), plain(model, x))


def same(network, value, oracle):
    if network.name in COPIES:
        assert_close(value, oracle, rtol=1e-15)
    else:
        assert torch.equal(value, oracle)


@NETS
def test_linearised_response_is_linear_in_displacement(network):
    model, x, response, delta = attached(network)
    other = torch.randn_like(delta)
    base = linearised_forward(model, x, response, torch.zeros_like(delta))

    def change(displacement):
        return linearised_forward(model, x, response, displacement) - base

    assert_close(change(delta + other), change(delta) + change(other), rtol=1e-10)
    assert_close(change(-7.0 * delta), -7.0 * change(delta), rtol=1e-10)


@NETS
@MODES
def test_batch_equals_each_example_alone(network, linearised):
    model, x, response, delta = attached(network)
    together = predict(model, response, delta, x, linearised)
    alone = [predict(model, response, delta[b : b + 1], x[b : b + 1], linearised) for b in range(BATCH)]
    assert_close(together, torch.cat(alone), rtol=1e-12)


@NETS
@MODES
def test_one_row_of_displacement_equals_that_row_repeated(network, linearised):
    model, x, response, delta = attached(network)
    one = predict(model, response, delta[:1], x, linearised)
    assert_close(one, predict(model, response, delta[:1].repeat(BATCH, 1), x, linearised), rtol=1e-12)


@NETS
@MODES
def test_displacement_of_one_example_moves_that_example_only(network, linearised):
    model, x, response, delta = attached(network)
    moved = delta.clone()
    moved[1] += 1.0
    before = predict(model, response, delta, x, linearised)
    after = predict(model, response, moved, x, linearised)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.isclose(before[1], after[1], rtol=1e-6).all()


@NETS
def test_fold_gives_the_dense_weights(network):
    model, _, response, delta = attached(network)
    oracle = dense_weights(model, response, delta[0])
    folded = response.fold(delta[0])
    assert set(folded) == set(response.parameter_names)
    assert_all_close(folded.values(), [oracle[name] for name in folded])
