"""A small task for trials on two workers, with a fault on one of them."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from tests.tune import tiny


def build(config):
    """The tiny task; `config["fault"]` is what worker 1 does in the third epoch, once if there is a file `mark`."""
    task = tiny.build({})
    inner, calls = task.loss, 0

    def loss(output, target):
        nonlocal calls
        calls += torch.is_grad_enabled()
        here = dist.is_initialized() and dist.get_rank() == 1
        if here and calls == 20 and not ("mark" in config and Path(config["mark"]).exists()):
            _fail(config)
        return inner(output, target)

    task.loss = loss
    return task


def _fail(config):
    if "mark" in config:
        Path(config["mark"]).touch()
    if config.get("fault") == "raise":
        raise ValueError("a fault on demand")
    if config.get("fault") == "memory":
        raise torch.OutOfMemoryError("no memory on demand")
    if config.get("fault") == "kill":
        os._exit(1)


TWO = {**tiny.CONFIG, "task": build, "resources": {"workers": 2, "cpu": 1}}
