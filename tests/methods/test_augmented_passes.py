"""Which passes are augmented, with which strengths, and that the network gets the augmented inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd

B = 8


class Shift:
    """Adds its hyperparameter to each example, and records its values."""

    names = ("shift",)

    def __init__(self):
        self.strengths = []

    def __call__(self, x, pass_values):
        strength = pass_values.values["shift"].detach().to(x.dtype, copy=True)
        self.strengths.append(strength)
        return x + strength.reshape(-1, 1)


class Seen(nn.Module):
    """Returns its input, and records it."""

    def __init__(self):
        super().__init__()
        self.inputs = []

    def forward(self, x):
        self.inputs.append(x.detach().clone())
        return x


def started(method, **settings):
    """A run on inputs of zero, so that the network gets the augmentation only."""
    torch.manual_seed(0)
    seen, shift = Seen(), Shift()
    data = torch.zeros(4 * B, 5), torch.arange(4 * B) % 3
    task = rd.Task(
        space=rd.HyperSpace(shift=rd.Bounded(0.3, low=0.0, high=1.0)),
        model=nn.Sequential(seen, nn.Linear(5, 3)),
        loss=F.cross_entropy,
        train=data,
        valid=data,
        augment=[shift],
    )
    tuner = rd.SelfTuner(task, method, batch_size=B, epochs=9, warmup=0, device="cpu", **settings)
    seen.inputs.clear()
    shift.strengths.clear()
    return tuner, seen, shift


@pytest.mark.parametrize(
    ("method", "settings", "passes"),
    [
        ("fixed", {}, [()]),
        ("stn", {}, [(B,)]),
        ("centered-stn", {}, [(), (B,)]),
        ("delta-stn", {}, [(), (B,)]),
        ("delta-stn", {"response_fraction": 0.25}, [(), (B // 4,)]),
    ],
)
def test_each_train_pass_is_augmented_with_its_own_strengths(method, settings, passes):
    tuner, seen, shift = started(method, **settings)
    tuner.model.train()
    tuner.algorithm.train_step(*tuner.train.next())
    assert sorted(tuple(strength.shape) for strength in shift.strengths) == passes
    for strength in shift.strengths:
        if strength.dim():  # s(λ + ε), a different value for each example
            assert len(set(strength.tolist())) == len(strength)
            assert ((strength > 0.0) & (strength < 1.0)).all()
        else:  # s(λ)
            assert strength.item() == pytest.approx(0.3, rel=1e-6)
    assert len(seen.inputs) == len(shift.strengths)
    for inputs, strength in zip(seen.inputs, shift.strengths, strict=True):
        assert torch.equal(inputs, strength.reshape(-1, 1).expand_as(inputs))


@pytest.mark.parametrize("method", ["stn", "centered-stn", "delta-stn"])
def test_validation_images_are_not_augmented(method):
    tuner, seen, shift = started(method)
    tuner.model.eval()
    tuner.algorithm.hyper_step(*tuner.valid.next())
    tuner.step()
    evaluated = [inputs for inputs in seen.inputs if len(inputs) > B]
    assert len(seen.inputs[0]) == B
    assert not seen.inputs[0].any()
    assert evaluated
    assert not any(inputs.any() for inputs in evaluated)
    assert not any(len(strength) > B for strength in shift.strengths if strength.dim())
