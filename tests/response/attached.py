"""A response attached to a network, and its prediction."""

import pytest
import torch

from ray_deltastn.response import Response, linearised_forward
from tests.networks import BATCH, NETWORKS
from tests.oracles import (
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
