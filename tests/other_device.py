"""Cycles of train and hyper steps on a device other than the CPU, where there is none: tensors without numbers.

`python -m tests.other_device` makes PyTorch believe in one more kind of device and runs one cycle of each task there,
on fake tensors. They refuse operations on tensors of two devices, and whatever would have to look at a number. It
prints, for each run, what went wrong and which operations touched the CPU, as JSON. A process of its own, because
PyTorch does not forget a device.
"""

import contextlib
import functools
import json
import os
import sys
import traceback
import warnings
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ray_deltastn as rd
from ray_deltastn.methods import METHODS
from ray_deltastn.training import random_state
from tests.tasks.image_examples import task

#: PyTorch's experimental way to have a device in Python.
ADD_DEVICE = "_setup_privateuseone_for_python_backend"
DEVICE = "elsewhere"
TASKS = ("mnist-mlp", "fashion-cnn", "cifar10-resnet18")
LEARNED = tuple(name for name, method in METHODS.items() if method.responds or not method.tunes)
#: Options by name.
VARIANTS = {
    "paper": {"preset": "paper"},
    "recommended": {},
    "estimators": {"response_fraction": 0.5, "antithetic": True, "perturbations": 2, "hyper_pass": "network"},
    "channels_last": {"channels_last": True},
    "others": {"optimizer": "adam", "tune_scale": False, "clip_grad": None},
}
#: Every method on every network; options that have nothing to do with its layers on the smallest.
RUNS = [
    *(f"{task} {method} paper" for task in TASKS for method in LEARNED),
    *(f"mnist-mlp {method} recommended" for method in LEARNED),
    *(f"{task} delta-stn {name}" for task in TASKS[1:] for name in ("recommended", "estimators", "channels_last")),
    "mnist-mlp delta-stn estimators",
    "mnist-mlp delta-stn others",
]
#: What a cycle must not do, and the check must see.
WRONG = {
    "two devices": lambda x: x + torch.ones(3),
    "a number read": lambda x: x.sum().item(),
    "a shape from data": lambda x: x[x > 0],
    "a number from the CPU": lambda x: x * torch.ones(()),
    "a way back": lambda x: x.to("cpu"),
}


class CpuWatch(TorchDispatchMode):
    """Notes the operations that take or give a tensor on the CPU, and the line of ours that called them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = (t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor))
        if func.namespace != "prim" and any(t.device.type == "cpu" for t in tensors):
            frames = traceback.extract_stack()
            # Optimisers count their steps on the CPU where they have no fused kernel; they have one for CUDA.
            if not any("torch/optim/" in f.filename for f in frames):
                ours = [f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in frames if "ray_deltastn/" in f.filename]
                self.found.append(f"{func} {' '.join(ours[-1:])}".strip())
        return result


def main():
    """Run everything and print what was found."""
    getattr(backend_registration, ADD_DEVICE)(DEVICE)
    found = {}
    with pretended():
        for name, wrong in WRONG.items():
            found[name] = watched(lambda w=wrong: functools.partial(w, torch.ones(3).to(DEVICE)))
        for name in RUNS:
            recipe, method, variant = name.split()
            found[name] = watched(functools.partial(cycle, recipe, method, **VARIANTS[variant]))
    print(json.dumps(found))


def watched(prepare):
    """Names of operations on the CPU of what `prepare` returns, or the error."""
    with FakeTensorMode(allow_non_fake_inputs=True), CpuWatch() as watch:
        try:
            run = prepare()
            watch.found.clear()
            run()
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]
        return watch.found


def cycle(recipe, method, **settings):
    """One train step, a train step and a hyper step of a run that has made its optimisers' buffers."""
    options = dict(batch_size=4, valid_batch_size=4, epochs=50, warmup=0, train_interval=2, clip_grad=1.0, graph="off")
    tuner = rd.SelfTuner(task(recipe, count=16), method, device=DEVICE, **{**options, **settings})
    tuner.model.train()
    for _ in range(2):
        tuner._train_step()

    def run():
        for _ in range(2):
            tuner._train_step()
        assert tuner.space.lam.device.type == DEVICE

    return run


@contextlib.contextmanager
def pretended():
    """Stand-ins for what PyTorch has for real devices only."""
    tensor, generator = torch.tensor, torch.Generator
    with contextlib.ExitStack() as stack:
        put = stack.enter_context
        put(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        put(mock.patch.object(torch, "Generator", side_effect=lambda device="cpu": generator()))
        put(mock.patch.object(torch, "tensor", lambda *a, device=None, **k: moved(tensor(*a, **k), device)))
        put(mock.patch.object(nn.Module, "to", module_to))
        for name in ("capture", "restore", "seed_all"):
            put(mock.patch.object(random_state, name))
        put(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def moved(tensor, device):
    """A tensor on a device, or where it is."""
    return tensor if device is None else tensor.to(device)


def module_to(self, *args, **kwargs):
    """`nn.Module.to`, which cannot exchange fake tensors."""
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                data = parameter.detach().to(*args, **kwargs)
                module._parameters[name] = nn.Parameter(data, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                # A dtype is for floating-point numbers only, and a space keeps its bounds in float64.
                kept = not buffer.is_floating_point() or name == "_bounds"
                there = buffer.to(*args, **kwargs)
                module._buffers[name] = there.to(buffer.dtype) if kept else there
    return self


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # PyTorch's threads for a device that does not exist now and then abort a process that ends by itself
