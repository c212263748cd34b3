"""Buffers that a module of the user changes in training mode: plain train steps change them, other passes do not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd

EXAMPLES, BATCH = 12, 4


class Counted(nn.Module):
    """Counts its training passes and averages its inputs, in place or with new tensors; has a constant too."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("constant", torch.arange(4.0, dtype=torch.float64))

    def forward(self, x):
        if self.training:
            if self.in_place:
                self.count += 1
                self.mean.lerp_(x.detach().mean(0), 0.5)
            else:
                self.count = self.count + 1
                self.mean = self.mean + 0.5 * (x.detach().mean(0) - self.mean)
        return x - self.constant


def run(method, in_place, **options):
    torch.manual_seed(0)
    model = nn.Sequential(Counted(in_place), nn.Linear(4, 8), nn.Tanh(), rd.Dropout("rate"), nn.Linear(8, 3)).double()
    x, y = torch.randn(EXAMPLES, 4, dtype=torch.float64), torch.randint(0, 3, (EXAMPLES,))
    task = rd.Task(rd.HyperSpace(rate=rd.Bounded(0.2)), model, F.cross_entropy, (x, y), (x, y))
    tuner = rd.SelfTuner(task, method, epochs=4, batch_size=BATCH, warmup=0, train_interval=1, seed=1, **options)
    list(tuner.fit())
    return tuner


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("method", ["delta-stn", "centered-stn", "stn"])
def test_buffers_are_those_of_plain_training(method, in_place):
    plain, tuned = (run(name, in_place).model[0] for name in ("fixed", method))
    assert tuned.count == plain.count == 4 * EXAMPLES / BATCH
    assert torch.equal(tuned.mean, plain.mean)
    assert torch.equal(tuned.constant, torch.arange(4.0, dtype=torch.float64))


def test_captured_steps_change_buffers_as_eager_ones_do():
    eager, captured = (run("delta-stn", True, graph=graph, optimizer="sgd") for graph in ("off", "on"))
    assert captured.algorithm.captured
    assert torch.equal(eager.model[0].count, captured.model[0].count)
    assert torch.equal(eager.model[0].mean, captured.model[0].mean)
    assert torch.equal(eager.space.lam, captured.space.lam)
