"""Cost of self-tuning: whole training loops, against a plain loop of PyTorch alone that is captured alike.

One cycle has five train steps and one hyper step; plain training takes the same five steps. Both loops choose their
minibatches on the device and add up their losses. Blocks of cycles alternate, and ratios are medians over the blocks.
`peak_bytes` is the largest memory while the loop is built and runs, without what was there before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

import ray_deltastn as rd
from benchmarks.gpu.items import Findings, Item, Place
from benchmarks.gpu.networks import NETS, data, task
from benchmarks.gpu.plain import Plain
from ray_deltastn.training.capture.graphs import EAGER, GraphedSteps
from ray_deltastn.training.precision import float32_products

TRAIN_INTERVAL = 5
BATCH, TINY_BATCH = 128, 4
#: Seconds of a block, number of pairs of blocks at least, and seconds of all blocks.
BLOCK, PAIRS, SECONDS = 0.1, 5, 2.0
#: How steps run: options of the run.
MODES: dict[str, dict[str, Any]] = {
    "captured": {"graph": "on"},
    "captured bf16": {"graph": "on", "precision": "bf16"},
    "captured bf16 channels-last": {"graph": "on", "precision": "bf16", "channels_last": True},
    "eager": {},
}
PRESETS = ("recommended", "paper")
#: Networks with images in two dimensions of feature maps.
IMAGES = ("cnn", "resnet18")

Loop = TypeVar("Loop")


def tuned(net: str, mode: str, preset: Any, place: Place, batch: int) -> rd.SelfTuner:
    """A run that does not end, past its warm-up."""
    examples = data(net, 8 * batch)
    options: dict[str, Any] = {"batch_size": batch, "epochs": 10**6, "warmup": 0, "train_interval": TRAIN_INTERVAL}
    made = task(net, place.tiny, examples, examples)
    tuner = rd.SelfTuner(made, preset=preset, device=place.device, **options, **MODES[mode])
    tuner.model.train()
    return tuner


def cycle_of(tuner: rd.SelfTuner) -> Callable[[], None]:
    """A cycle of a run: five train steps, the last of which is followed by a hyper step."""

    def cycle() -> None:
        with tuner.arithmetic():
            for _ in range(TRAIN_INTERVAL):
                tuner._train_step()

    return cycle


def cycle_of_plain(plain: Plain) -> Callable[[], None]:
    """Five train steps of plain training, in full float32."""

    def cycle() -> None:
        with float32_products(False, plain.place.device):
            for _ in range(TRAIN_INTERVAL):
                plain.step()

    return cycle


def with_peak(place: Place, make: Callable[[], Loop], cycle: Callable[[Loop], Callable[[], None]]) -> tuple[Loop, int]:
    """Make a loop, and run it until all its steps are captured; the loop, and its peak memory in bytes."""
    if place.on_gpu:
        torch.cuda.reset_peak_memory_stats(place.device)
    before = torch.cuda.memory_allocated(place.device) if place.on_gpu else 0
    with float32_products(False, place.device):
        loop = make()
    run = cycle(loop)
    for _ in range(1 if place.tiny else EAGER + 2):
        run()
    place.wait()
    return loop, (torch.cuda.max_memory_allocated(place.device) if place.on_gpu else 0) - before


def seconds_of(cycle: Callable[[], None], count: int, place: Place) -> float:
    """Seconds of some cycles."""
    place.wait()
    started = time.perf_counter()
    for _ in range(count):
        cycle()
    place.wait()
    return time.perf_counter() - started


def measure(net: str, mode: str, preset: str, place: Place, findings: Findings) -> None:
    """Images per second and peak memory of a run, and of plain training."""
    batch = TINY_BATCH if place.tiny else BATCH
    given = MODES[mode]
    options = {"half": given.get("precision") == "bf16", "channels_last": given.get("channels_last", False)}

    def make_plain(graph: bool = given.get("graph") == "on") -> Plain:
        return Plain(net, place, data(net, 8 * batch), batch, graph=graph, **options)

    # Libraries allocate workspaces in their first call. Without this loop, plain training alone would count them.
    make_plain(False).step()
    plain, least = with_peak(place, make_plain, cycle_of_plain)
    tuner, most = with_peak(place, partial(tuned, net, mode, preset, place, batch), cycle_of)
    one, other = cycle_of_plain(plain), cycle_of(tuner)
    each = seconds_of(one, 1, place), seconds_of(other, 1, place)
    counts = [1 if place.tiny else max(1, round(BLOCK / s)) for s in each]
    pairs: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(pairs) < (1 if place.tiny else PAIRS) or (not place.tiny and time.perf_counter() - started < SECONDS):
        pairs.append((seconds_of(one, counts[0], place) / counts[0], seconds_of(other, counts[1], place) / counts[1]))
        if place.left < 0:
            break
    ratio = statistics.median(b / a for a, b in pairs)
    rates = [TRAIN_INTERVAL * batch / statistics.median(column) for column in zip(*pairs, strict=True)]
    findings.note(
        net=net,
        mode=mode,
        preset=preset,
        batch=batch,
        time_ratio=ratio,
        plain_images_per_second=rates[0],
        images_per_second=rates[1],
        pairs=len(pairs),
    )
    text = f"{ratio:.2f} × plain, {rates[1]:,.0f} examples/s, plain {rates[0]:,.0f}"
    if place.on_gpu:
        findings.note(peak_bytes=most, plain_peak_bytes=least, memory_ratio=most / least)
        text += f", memory {most / least:.2f} ×"
    if "graph" in given:
        findings.must("captured", isinstance(tuner.algorithm, GraphedSteps) and tuner.algorithm.captured)
    findings.note(text=text)


def items(tiny: bool) -> list[Item]:
    """All measurements, the most useful ones first."""
    modes = ("eager",) if tiny else tuple(MODES)
    return [
        Item(f"{net}, {mode}, {preset}", partial(measure, net, mode, preset), 9.0)
        for mode in modes
        for preset in PRESETS
        for net in NETS
        if not MODES[mode].get("channels_last") or net in IMAGES
    ]
