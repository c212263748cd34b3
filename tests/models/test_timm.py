"""Networks of timm train as they are, and their responses are exact."""

import pytest
import torch
from torch import nn

from ray_deltastn.response import Response
from tests.models.checked import cases, check, entries
from tests.oracles import assert_close, randomise
from tests.response.attached import MODES, H, predict

TIMM = entries("timm_models", "TIMM", "timm")
#: Least share of the weights that respond.
FLOORS = {"ViT": 1.0, "Swin": 0.98, "MobileViT": 1.0, "GhostNet": 1.0, "NFNet": 1.0}


@pytest.mark.parametrize(("entry", "floor"), cases(TIMM, FLOORS))
def test_a_network_trains_and_its_response_is_exact(entry, floor):
    check(entry, floor)


@MODES
@pytest.mark.parametrize("training", [False, True])
def test_batch_normalisation_with_an_activation_is_what_both_layers_are(training, linearised):
    torch.manual_seed(0)
    layers = pytest.importorskip("timm.layers")
    one = nn.Sequential(nn.Conv2d(2, 3, 2), layers.BatchNormAct2d(3), nn.Identity(), nn.Flatten(), nn.Linear(12, 2))
    two = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    nn.init.normal_(one[1].weight)
    nn.init.normal_(one[1].running_mean)
    two.load_state_dict(one.state_dict())
    responses = []
    for model in (one, two):
        model.double().train(training)
        responses.append(randomise(Response(model, H)))
        assert not responses[-1].coverage.uncovered
    responses[1].load_state_dict(responses[0].state_dict())
    x, delta = torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.randn(4, H, dtype=torch.float64)
    values = [
        predict(model, response, delta, x, linearised) for model, response in zip((one, two), responses, strict=True)
    ]
    assert_close(*values)
