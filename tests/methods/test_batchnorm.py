"""Running statistics of normalisation layers change once per step, in the w₀ pass, and never with perturbed data."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ray_deltastn.domains import Unbounded
from ray_deltastn.methods import Objective, Steps, get_method
from ray_deltastn.regularizers import PassValues
from ray_deltastn.response import Response
from ray_deltastn.space import HyperSpace

NETWORKS = {
    "batchnorm1d": (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), (4,)),
    "batchnorm2d": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Conv2d(3, 2, 2),
            nn.BatchNorm2d(2),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        (1, 4, 4),
    ),
    "batchnorm2d-cumulative": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3, momentum=None), nn.Flatten(), nn.Linear(27, 3)),
        (1, 4, 4),
    ),
    "instancenorm1d": (
        lambda: nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(10, 3)),
        (2, 5),
    ),
    "instancenorm2d": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2),
            nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(27, 3),
        ),
        (1, 4, 4),
    ),
}


def run(name, method, batch, steps=6):
    """State of the model after train and hyper steps; all methods get the same batches."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    space = HyperSpace(a=Unbounded(0.0), b=Unbounded(0.0))
    method = get_method(method)
    response = Response(model, 2, torch.Generator().manual_seed(1)) if method.responds else None
    pass_values = PassValues(space, torch.Generator().manual_seed(2))
    objective = Objective(model, F.cross_entropy, space, pass_values, method, response)
    stepper = Steps(
        objective,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        torch.optim.SGD(response.parameters(), lr=0.1, momentum=0.9) if response else None,
        torch.optim.RMSprop(space.parameters(), lr=0.01) if response else None,
    )
    data = torch.Generator().manual_seed(3)
    flags = layer_flags(model)
    for _ in range(steps):
        x, y = torch.randn(batch, *shape, generator=data), torch.randint(0, 3, (batch,), generator=data)
        stepper.train_step(x, y)
        model.eval()
        if response is not None:
            stepper.hyper_step(x, y)
        else:
            model(x)  # torch 2.5 rounds an instance norm's statistics anew when it evaluates, so evaluate here as well
        model.train()
    assert layer_flags(model) == flags
    if response is not None:
        assert response.U.any()
    return model.state_dict()


def layer_flags(model):
    return [
        (m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None)) for m in model.modules()
    ]


@pytest.mark.parametrize("method", ["centered-stn", "delta-stn"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [4, 7, 11])
def test_statistics_and_weights_equal_those_of_plain_training_bit_for_bit(name, method, batch):
    plain, tuned = run(name, "fixed", batch), run(name, method, batch)
    assert any("running_mean" in key for key in plain)
    different = [key for key in plain if not torch.equal(plain[key], tuned[key])]
    assert different == []


@pytest.mark.parametrize("method", ["stn", "centered-stn", "delta-stn"])
def test_batches_are_counted_once_a_step(method):
    assert run("batchnorm1d", method, batch=4, steps=5)["1.num_batches_tracked"].item() == 5


@pytest.mark.parametrize("name", ["batchnorm2d", "instancenorm2d"])
def test_flags_are_restored_after_a_failed_pass(name):
    build, shape = NETWORKS[name]
    model, space = build(), HyperSpace(a=Unbounded(0.0))
    response = Response(model, 1)
    objective = Objective(model, F.cross_entropy, space, PassValues(space), get_method("delta-stn"), response)
    stepper = Steps(
        objective, torch.optim.SGD(model.parameters(), lr=0.0), torch.optim.SGD(response.parameters(), lr=0.0)
    )
    flags, keys = layer_flags(model), list(model.state_dict())
    calls = []

    def failing(output, target):
        calls.append(output)
        if len(calls) == 2:
            raise FloatingPointError("second pass")
        return F.cross_entropy(output, target)

    objective.loss = failing
    with pytest.raises(FloatingPointError):
        stepper.train_step(torch.randn(4, *shape), torch.zeros(4, dtype=torch.long))
    assert layer_flags(model) == flags
    assert list(model.state_dict()) == keys
    assert all(p.requires_grad for p in model.parameters())
