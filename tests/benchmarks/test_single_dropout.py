"""Tasks with one hyperparameter, the dropout rate of the input."""

import pytest
import torch
from torch import nn

import ray_deltastn as rd
from benchmarks import single_dropout
from ray_deltastn.tasks import build_task, images


def test_digits_tunes_only_the_input_dropout_rate():
    config = {"task": "benchmarks.single_dropout:digits", "width": 32, "initial_values": {"dropout0": 0.3}}
    task = build_task(config)
    assert task.space.names == ("dropout0",)
    assert task.space.values().item() == pytest.approx(0.3)
    assert [m.out_features for m in task.model if isinstance(m, nn.Linear)] == [32, 32, 10]
    tuner = rd.SelfTuner(task, epochs=2, batch_size=64, warmup=1, device="cpu")
    before = tuner.space.lam.detach().clone()
    list(tuner.fit())
    assert not torch.equal(tuner.space.lam.detach(), before)


def test_mnist_is_the_papers_network_with_input_dropout_only(monkeypatch):
    noise = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (40,))
    monkeypatch.setattr(images, "load_images", lambda name, root: (noise, noise))
    task = single_dropout.mnist({"images": 20})
    assert task.space.names == ("dropout0",)
    assert [tuple(m.weight.shape) for m in task.model.modules() if isinstance(m, nn.Linear)] == [
        (1200, 784),
        (1200, 1200),
        (1200, 1200),
        (10, 1200),
    ]
