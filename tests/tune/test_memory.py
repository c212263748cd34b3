"""A reused worker keeps no memory of earlier trials."""

import gc

import pytest
import torch

from ray_deltastn import DeltaSTNTrainable
from tests.tune.tiny import CONFIG


def live_bytes():
    """Bytes of all tensors that this test has made; shared storage is counted once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # `isinstance` would load lazy modules
            try:
                storage = thing.untyped_storage()
            except NotImplementedError:  # an undefined tensor, which torch 2.5 may leave behind: it holds no memory
                continue
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.fixture(autouse=True)
def _earlier_objects_are_frozen():
    """Take the objects of earlier tests out of every collection and count: a test process holds millions."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    ("device", "used"),
    [
        ("cpu", live_bytes),
        pytest.param(
            "cuda",
            torch.cuda.memory_allocated,
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_ten_reused_trials_hold_no_more_memory_than_one(device, used, tmp_path):
    config = {**CONFIG, "width": 256, "device": device, "epochs": 2}
    trial = DeltaSTNTrainable(config)
    held = []
    for number in range(10):
        trial.train()
        trial.save(str(tmp_path / f"checkpoint_{number:06}"))
        held.append(used())
        trial.reset_config({**config, "lr": 0.01 * (number + 1), "seed": number})
    one = sum(p.numel() * p.element_size() for p in trial.tuner.model.parameters())
    assert held[0] > 2 * one  # the count includes weights, responses and optimiser moments
    assert held[-1] == pytest.approx(held[0], rel=0.01)
