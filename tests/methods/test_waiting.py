"""A cycle never makes the host wait for the device, so that the launch queue of a GPU stays full."""

import numpy as np
import pytest
import torch

from ray_deltastn.methods import METHODS
from tests.methods.started import started
from tests.oracles import NoSync

LEARNED = [name for name, method in METHODS.items() if method.responds or not method.tunes]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
        lambda x: np.asarray(x),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0.5],
        lambda x: x.clone().__setitem__(x > 0.5, 0.0),
        lambda x: torch.allclose(x, x),
        lambda x: torch.equal(x, x),
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1.0, 2.0]) + x,
        lambda x: torch.unique(x),
    ],
    ids=[
        "item",
        "tolist",
        "numpy",
        "cpu",
        "array",
        "bool",
        "mask",
        "put",
        "allclose",
        "equal",
        "nonzero",
        "list",
        "unique",
    ],
)
def test_the_check_finds_operations_that_wait(wait):
    with pytest.raises(AssertionError), NoSync():
        wait(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("name", ["fashion-cnn", "cifar10-resnet18"])
@pytest.mark.parametrize("method", LEARNED)
def test_a_cycle_has_no_synchronising_call(method, name):
    tuner = started(method, name, "cpu")
    before = tuner.space.lam.detach().clone()
    with NoSync():
        tuner._train_step()
    assert METHODS[method].tunes != torch.equal(tuner.space.lam, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", LEARNED)
def test_a_cycle_has_no_synchronising_call_on_a_gpu(method):
    tuner = started(method, "cifar10-resnet18", "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        tuner._train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
