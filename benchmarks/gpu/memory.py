"""Correctness of what a run asks of the device: it never makes the host wait, and it gives its memory back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import ray_deltastn as rd
from benchmarks.gpu.items import Findings, Place
from benchmarks.gpu.networks import data, task
from ray_deltastn.tasks.images import CIFAR10_RESNET18, FASHION_CNN, ImageRecipe, task_of
from ray_deltastn.training.capture.graphs import EAGER

#: The tasks of the paper with their augmentations.
RECIPES: dict[str, ImageRecipe] = {"fashion-cnn": FASHION_CNN, "cifar10-resnet18": CIFAR10_RESNET18}
#: Number of runs one after the other.
RUNS = 10
#: The last of them may hold this much more memory than the second.
SHARE, BYTES = 0.01, 4 * 2**20


def _task(name: str, tiny: bool, count: int) -> rd.Task:
    if name not in RECIPES:
        return task(name, tiny, data(name, count, 1), data(name, count, 2))
    own = torch.Generator().manual_seed(0)
    shape = (3, 32, 32) if name.startswith("cifar10") else (1, 28, 28)
    x = torch.randint(0, 256, (count, *shape), generator=own, dtype=torch.uint8)
    split = x, torch.randint(0, 10, (count,), generator=own)
    return task_of(RECIPES[name], split, split, split, {})


@contextmanager
def no_waiting(place: Place) -> Iterator[None]:
    """Context in which PyTorch raises an error if the host waits for the device."""
    if not place.on_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_waiting(name: str, method: Any, graph: Any, place: Place, findings: Findings) -> None:
    """An epoch of train and hyper steps, with its smaller last minibatch and the start of the next epoch."""
    size = 4 if place.tiny else 32
    options: dict[str, Any] = {"batch_size": size, "epochs": 50, "warmup": 0, "train_interval": 2, "hyper_decay": 1.0}
    made = _task(name, place.tiny, 4 * size + size // 2)
    tuner = rd.SelfTuner(made, method, device=place.device, graph=graph, **options)
    tuner.model.train()
    epoch = len(tuner.train)
    with tuner.arithmetic():
        for _ in range((2 * EAGER + 2) * epoch):  # until the step of each shape is captured
            tuner._train_step()
        before = tuner.space.lam.detach().clone()
        with no_waiting(place):
            for _ in range(epoch + 2):
                tuner._train_step()
    place.wait()
    findings.must("moved", tuner.method.tunes != torch.equal(before, tuner.space.lam.detach()))


def check_memory(reused: bool, place: Place, findings: Findings) -> None:
    """Memory that is held after each of ten runs.

    Args:
        reused: whether all runs have the same task and model; if not, each makes them again.
        place: where to run.
        findings: the figures.
    """
    size = 8 if place.tiny else 64
    held: list[int] = []
    made = _task("cnn", place.tiny, 4 * size)
    for number in range(4 if place.tiny else RUNS):
        if not reused and number:
            made = _task("cnn", place.tiny, 4 * size)
        graph: Any = "auto"
        tuner = rd.SelfTuner(
            made, epochs=3, batch_size=size, warmup=0, train_interval=1, device=place.device, graph=graph
        )
        for _ in tuner.fit():
            pass
        tuner.release()
        del tuner
        if not reused:
            del made
        gc.collect()
        held.append(_held(place))
    findings.note(first=held[0], second=held[1], last=held[-1])
    findings.at_most("growth in bytes", float(held[-1] - held[1]), max(SHARE * held[1], BYTES))


def _held(place: Place) -> int:
    """Bytes that this process holds on the device; on a CPU those of all tensors."""
    if place.on_gpu:
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(place.device)
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # `isinstance` would load lazy modules
            try:
                storage = thing.untyped_storage()
            except NotImplementedError:  # an undefined tensor
                continue
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
