"""Which parameters respond, which are reported without response, and what a response changes in the model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ray_deltastn.response import Response, linearised_forward
from ray_deltastn.response.look import look
from ray_deltastn.response.passes import LEAF
from tests.networks import BATCH, BY_NAME
from tests.oracles import assert_close, randomise
from tests.response.attached import MODES, NETS, H, attached, predict


@NETS
def test_attaching_does_not_change_the_model(network):
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


def test_release_keeps_other_hooks():
    model, x = BY_NAME["linear"]()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("forward"))
    Response(model, H).release()
    model(x)
    assert seen == ["forward"]


@MODES
def test_a_failed_pass_does_not_change_the_next_pass(linearised):
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


def test_the_error_for_another_batch_size_names_the_layer():
    model, x, response, _ = attached(BY_NAME["linear"])
    with pytest.raises(ValueError, match="layer '0'"):
        predict(model, response, torch.ones(2, H, dtype=torch.float64), x, False)


def test_every_tensor_of_a_nested_output_is_linearised():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return {"both": (self.layer(x), 2 * self.layer(x)), "count": torch.arange(len(x)), "name": "pair"}

    model = Pair()
    response = Response(model, H)
    nn.init.normal_(response.U)
    delta, x = torch.randn(3, H), torch.randn(3, 2)
    found = linearised_forward(model, x, response, delta)
    one = linearised_forward(model.layer, x, Response(model.layer, H), delta)
    assert found["name"] == "pair"
    assert torch.equal(found["count"], torch.arange(3))
    assert torch.equal(2 * found["both"][0], found["both"][1])
    assert found["both"][0].shape == one.shape
    assert not torch.equal(found["both"][0], one)


def test_directions_are_initialised_like_the_weights_of_their_layer():
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
    """A subclass that keeps the `forward` of its parent."""


def test_parameters_owned_by_a_module_with_layers_respond_as_elements():
    response = Response(Scaled(), H)
    assert set(response.coverage.covered) == {"gain", "layer.weight", "layer.bias"}
    (gain,) = (slot for slot in response.slots if slot.name == "gain")
    assert gain.stop - gain.start == 3
    assert response.coverage.layers == 1  # the module that owns a parameter is none


def test_frozen_parameters_are_reported():
    coverage = Response(half_frozen_model(), H).coverage
    assert set(coverage.covered) == {"1.weight", "1.bias"}
    assert set(coverage.uncovered) == {"0.weight", "0.bias"}
    assert all("frozen" in why for why in coverage.uncovered.values())


def half_frozen_model():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    return model


def test_attention_and_recurrent_layers_respond_per_row():
    model = nn.ModuleList([nn.MultiheadAttention(4, 2), nn.LSTM(4, 3)])
    response = Response(model, H)
    assert not response.coverage.uncovered
    rows = {slot.name: slot.stop - slot.start for slot in response.slots}
    assert rows["0.in_proj_weight"] == 12
    assert rows["0.out_proj.weight"] == 4
    assert rows["1.weight_hh_l0"] == rows["1.bias_hh_l0"] == 12


def test_a_layer_without_a_rule_responds_per_row_of_its_weight():
    response = Response(nn.Sequential(Doubling(2, 4), nn.Bilinear(4, 4, 3)), H)
    assert not response.coverage.uncovered
    rows = {slot.name: slot.stop - slot.start for slot in response.slots}
    assert rows == {"0.weight": 4, "0.bias": 4, "1.weight": 3, "1.bias": 3}


def test_embedding_with_max_norm_is_reported():
    coverage = Response(nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Linear(3, 2)), H).coverage
    assert "max_norm" in coverage.uncovered["0.weight"]


def test_a_subclass_has_the_rule_of_its_parent_only_if_it_keeps_its_forward():
    response = Response(nn.Sequential(Doubling(2, 2), Renamed(2, 2)), H)
    assert not response.coverage.uncovered
    assert [response.uses.kind(layer) is LEAF for layer in response.model] == [True, False]


def test_a_weight_of_a_layer_with_a_rule_and_of_one_without_moves_in_both():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), Doubling(3, 3)).double()
    model[2].weight = model[0].weight
    response = randomise(Response(model, H))
    x, delta = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, H, dtype=torch.float64)
    with response.displaced(delta):
        value = model(x)
    for row, one, out in zip(delta, x, value, strict=True):
        assert_close(out, functional_call(model, response.fold(row), (one[None],))[0])


def test_layers_without_a_responding_parameter_are_not_counted():
    model = nn.Sequential(nn.Embedding(3, 3, max_norm=1.0), nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
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
    look(lambda x: model["used"](x), torch.ones(6, 2), response, linearised=True, readers={})
    assert set(response.coverage.covered) == {"used.weight", "used.bias"}
    assert response.coverage.uncovered == dict.fromkeys(
        ["idle.weight", "idle.bias"], "layer 'idle' is never called in evaluation mode"
    )


def test_a_model_that_cannot_respond_is_refused():
    with pytest.raises(ValueError, match=r"max_norm"):
        Response(nn.Embedding(5, 3, max_norm=1.0), H)
