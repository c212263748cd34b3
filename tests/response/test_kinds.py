"""Every layer kind against dense oracles: values, gradients, linearity and sparsity of the response."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ray_deltastn.methods.frozen import frozen
from ray_deltastn.response import Response, linearised_forward
from ray_deltastn.response.kinds import KINDS, kind_of
from tests.networks import BATCH, BY_NAME, NETWORKS, WORDS
from tests.oracles import (
    assert_all_close,
    assert_close,
    batch_prediction,
    dense_prediction,
    dense_weights,
    grad,
    randomise,
)

H = 2  # hyperparameters
MODES = pytest.mark.parametrize("linearised", [False, True], ids=["displaced", "linearised"])
NETS = pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)


def attached(network, batch=BATCH):
    model, x = network(batch)
    response = randomise(Response(model, H))
    torch.manual_seed(1)
    return model, x, response, torch.randn(batch, H, dtype=torch.float64)


def predict(model, response, delta, x, linearised):
    if linearised:
        return linearised_forward(model, x, response, delta)
    with response.displaced(delta):
        return model(x)


def plain(model, x):
    with sdpa_kernel(SDPBackend.MATH):  # as in a linearised pass; with gradients enabled, since fused paths round apart
        return model(x)


# --- value and gradient --------------------------------------------------------------------------------------------


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
    # The method's passes freeze w₀; layers with fused shortcuts for "no gradient needed" must not take them.
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


# --- shape of the response -----------------------------------------------------------------------------------------


@NETS
@MODES
def test_response_is_exactly_zero_at_zero_displacement(network, linearised):
    model, x, response, delta = attached(network)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.equal(predict(model, response, torch.zeros_like(delta), x, linearised), plain(model, x))


@NETS
@MODES
def test_response_of_a_new_theta_is_exactly_zero(network, linearised):
    model, x = network()
    response = Response(model, H)
    delta = torch.randn(BATCH, H, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.equal(predict(model, response, delta, x, linearised), plain(model, x))


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


# --- leaf rules ----------------------------------------------------------------------------------------------------

LEAVES = {
    "linear": (lambda: nn.Linear(3, 4), (2, 3), 4),
    "linear-middle": (lambda: nn.Linear(3, 4), (2, 2, 2, 3), 4),
    "conv1d": (lambda: nn.Conv1d(2, 4, 2, groups=2, stride=2), (2, 2, 5), 4),
    "conv2d": (lambda: nn.Conv2d(2, 3, 2, padding=1, padding_mode="circular"), (2, 2, 3, 3), 3),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, dilation=2, padding="same"), (2, 1, 2, 2, 2), 2),
    "embedding": (lambda: nn.Embedding(WORDS, 3), (2, 4), 3),
    "batchnorm-eval": (lambda: nn.BatchNorm1d(3).eval(), (3, 3), 3),
    "batchnorm-train": (lambda: nn.BatchNorm2d(2), (3, 2, 2, 2), 2),
    "layernorm": (lambda: nn.LayerNorm((2, 3)), (2, 2, 2, 3), 6),
    "groupnorm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3), 4),
    "rmsnorm": (lambda: nn.RMSNorm(4, eps=1e-3), (2, 3, 4), 4),
}


def leaf(name):
    torch.manual_seed(0)
    build, shape, rows = LEAVES[name]
    layer = build().double()
    integer = isinstance(layer, nn.Embedding)
    x = torch.randint(0, WORDS, shape) if integer else torch.randn(shape, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    return layer, x, torch.randn(shape[0], rows, dtype=torch.float64, requires_grad=True)


def test_leaf_cases_cover_the_table_of_kinds():
    assert {kind_of(leaf(name)[0]) for name in LEAVES} == set(KINDS)


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_rule_passes_gradcheck(name):
    layer, x, rows = leaf(name)
    kind = kind_of(layer)
    direction = torch.randn_like(layer.weight, requires_grad=True)

    def change(direction, rows, x):
        output = kind.apply(layer, x, direction)
        return output * kind.place(layer, rows, output)

    if x.is_floating_point():
        assert torch.autograd.gradcheck(change, (direction, rows, x))
    else:
        assert torch.autograd.gradcheck(lambda direction, rows: change(direction, rows, x), (direction, rows))


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_rule_is_the_layer_without_bias_and_linear_in_the_weight(name):
    layer, x, _ = leaf(name)
    kind = kind_of(layer)
    other = torch.randn_like(layer.weight)
    bias = getattr(layer, "bias", None)
    output = kind.apply(layer, x, layer.weight)
    whole = output if bias is None else output + kind.place(layer, bias.reshape(1, -1), output)
    assert_close(whole, layer(x), rtol=1e-12)
    combined = kind.apply(layer, x, 2.0 * layer.weight + other)
    assert_close(combined, 2.0 * output + kind.apply(layer, x, other), rtol=1e-12)


@pytest.mark.parametrize("name", LEAVES)
@MODES
def test_layer_passes_gradcheck_in_theta_and_displacement(name, linearised):
    layer, x, _ = leaf(name)
    x = x.detach()
    model = nn.Sequential(layer, nn.Flatten(), nn.Tanh())
    response = randomise(Response(model, H))
    delta = torch.randn(x.shape[0], H, dtype=torch.float64, requires_grad=True)

    def prediction(*inputs):  # gradcheck moves the parameters themselves, in place
        return predict(model, response, inputs[-1], x, linearised)

    assert torch.autograd.gradcheck(prediction, (*response.parameters(), delta))


# --- attaching and releasing ---------------------------------------------------------------------------------------


@NETS
def test_attaching_leaves_the_model_as_it_is(network):
    model, x = network()
    kind, before, output = type(model), copy.deepcopy(model.state_dict()), model(x)
    response = randomise(Response(model, H))
    assert type(model) is kind
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(model(x), output)
    with response.displaced(None):
        assert torch.equal(model(x), output)
    predict(model, response, torch.ones(1, H, dtype=torch.float64), x, True)
    assert torch.equal(model(x), output)
    response.release()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._forward_hooks_with_kwargs
        assert not module._forward_pre_hooks_with_kwargs


def test_release_leaves_hooks_of_others():
    model, x = BY_NAME["linear"]()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("forward"))
    Response(model, H).release()
    model(x)
    assert seen == ["forward"]


@MODES
def test_a_failed_pass_leaves_no_trace(linearised):
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)).double()
    response = randomise(Response(model, H))
    x, delta = torch.randn(BATCH, 4, dtype=torch.float64), torch.randn(BATCH, H, dtype=torch.float64)
    before = predict(model, response, delta, x, linearised).detach()
    model[1].in_features, weight = 9, model[1].weight
    model[1].weight = nn.Parameter(torch.zeros(3, 9, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        predict(model, response, delta, x, linearised)
    model[1].weight = weight
    assert torch.equal(predict(model, response, delta, x, linearised), before)


def test_batch_of_another_size_is_refused_by_layer_name():
    model, x, response, _ = attached(BY_NAME["linear"])
    with pytest.raises(ValueError, match="layer '0'"):
        predict(model, response, torch.ones(2, H, dtype=torch.float64), x, False)


def test_linearised_output_must_be_a_tensor():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x), x

    model = Pair()
    with pytest.raises(TypeError, match="tuple"):
        linearised_forward(model, torch.ones(1, 2), Response(model, H), torch.ones(1, H))


def test_directions_start_on_the_scale_of_the_layers_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 50), nn.LayerNorm(50), nn.Embedding(300, 20))
    response = Response(model, H, torch.Generator().manual_seed(3))
    slots = {slot.name: response.direction(slot) for slot in response.slots}
    assert slots["0.weight"].std().item() == pytest.approx(model[0].weight.std().item(), rel=0.05)
    assert slots["2.weight"].std().item() == pytest.approx(1.0, rel=0.05)
    assert torch.equal(slots["1.weight"], torch.ones(50))
    assert slots["0.bias"].abs().max() < 0.1
    assert not response.U.any()
    again = Response(model, H, torch.Generator().manual_seed(3))
    assert all(torch.equal(again.direction(s), response.direction(s)) for s in response.slots)


# --- coverage ------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return self.gain * self.layer(x)


class Doubling(nn.Linear):
    def forward(self, x):
        return 2.0 * F.linear(x, self.weight, self.bias)


class Renamed(nn.Linear):
    """A subclass that keeps its parent's forward."""


def test_parameters_owned_by_a_custom_module_are_reported():
    coverage = Response(Scaled(), H).coverage
    assert set(coverage.covered) == {"layer.weight", "layer.bias"}
    assert coverage.uncovered == {"gain": "owned directly by Scaled"}
    assert coverage.layers == 1
    assert "gain: owned directly by Scaled" in str(coverage)


def test_frozen_parameters_are_reported():
    coverage = Response(half_frozen_model(), H).coverage
    assert set(coverage.covered) == {"1.weight", "1.bias"}
    assert set(coverage.uncovered) == {"0.weight", "0.bias"}
    assert all("frozen" in why for why in coverage.uncovered.values())


def half_frozen_model():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    return model


def test_multihead_attention_is_reported():
    coverage = Response(nn.ModuleList([nn.MultiheadAttention(4, 2), nn.Linear(4, 4)]), H).coverage
    assert set(coverage.covered) == {"1.weight", "1.bias"}
    names = {"0.in_proj_weight", "0.in_proj_bias", "0.out_proj.weight", "0.out_proj.bias"}
    assert set(coverage.uncovered) == names
    assert all("MultiheadAttention" in why for why in coverage.uncovered.values())


def test_embedding_with_max_norm_is_reported():
    coverage = Response(nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Linear(3, 2)), H).coverage
    assert "max_norm" in coverage.uncovered["0.weight"]


def test_subclass_with_a_forward_of_its_own_is_reported_and_one_without_responds():
    coverage = Response(nn.Sequential(Doubling(2, 2), Renamed(2, 2)), H).coverage
    assert set(coverage.covered) == {"1.weight", "1.bias"}
    assert coverage.uncovered == dict.fromkeys(["0.weight", "0.bias"], "owned directly by Doubling")


def test_a_parameter_also_used_outside_the_table_does_not_respond():
    model = nn.Sequential(nn.Linear(3, 3), Doubling(3, 3))
    model[1].weight = model[0].weight
    coverage = Response(model, H).coverage
    assert set(coverage.covered) == {"0.bias"}
    assert coverage.uncovered["0.weight"] == "owned directly by Doubling"


def test_layers_left_without_a_responding_parameter_are_not_counted():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), Doubling(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    coverage = Response(model, H).coverage
    assert set(coverage.covered) == {"2.weight", "2.bias"}
    assert coverage.layers == 1


@pytest.mark.parametrize("name", ["tied-embedding-first", "tied-linear-first", "shared-parameter", "used-twice"])
def test_a_tied_parameter_is_listed_once(name):
    model, _ = BY_NAME[name]()
    response = Response(model, H)
    names = [n for n, _ in model.named_parameters()]
    assert response.parameter_names == names
    assert list(response.coverage.covered) == names
    assert response.U.shape[0] == sum(slot.stop - slot.start for slot in response.slots)


def test_layers_never_called_are_reported_after_a_trial_pass():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    response = Response(model, H)
    with response.displaced(torch.zeros(1, H)):
        model["used"](torch.ones(1, 2))
    response.drop_uncalled()
    assert set(response.coverage.covered) == {"used.weight", "used.bias"}
    assert response.coverage.uncovered == dict.fromkeys(["idle.weight", "idle.bias"], "layer 'idle' is never called")


def test_a_model_that_cannot_respond_is_refused():
    with pytest.raises(ValueError, match="Doubling"):
        Response(Doubling(2, 2), H)
