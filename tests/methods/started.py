"""A run of an image task that is past its first step."""

import torch

import ray_deltastn as rd
from tests.tasks.image_examples import task


def started(method, name, device, **settings):
    """A run after its first step, which makes the optimisers' buffers."""
    torch.manual_seed(0)
    tuner = rd.SelfTuner(
        task(name),
        method,
        batch_size=4,
        valid_batch_size=4,
        epochs=50,
        warmup=0,
        train_interval=2,
        clip_grad=1.0,
        device=device,
        **settings,
    )
    tuner.model.train()
    for _ in range(2):
        tuner._train_step()
    tuner.steps = 1
    return tuner
