r"""Several small runs at the same time: in one process or in one process each, against one after the other.

    python -m benchmarks.gpu.streams --json FILE

- `in turn`: one thread takes a step of each run in turn; on a GPU each run has a stream of its own.
- `threads`: one thread for each run; on a GPU with a stream of its own.
- `processes`: one process for each run, as Ray starts them.

Each run trains a perceptron with captured steps. The gain of a way is its number of train steps in a second, divided by
that of a single run; `cpu` is its CPU time per step, divided in the same way. The ways are measured in turn, several
times, and the figures are medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import ray_deltastn as rd
from benchmarks.common.arguments import number, prepare, several, whole
from benchmarks.common.machine import hardware, versions
from benchmarks.common.record import command_line, rounded, write
from benchmarks.gpu.items import Findings, Item, Place
from benchmarks.gpu.networks import data
from ray_deltastn.tasks.networks import mlp
from ray_deltastn.training.capture.graphs import EAGER

KINDS = ("in turn", "threads", "processes")
COUNTS = (1, 2, 4)
BATCH, WIDTH, TRAIN_INTERVAL = 64, 128, 5
#: Seconds of one measurement, and number of measurements.
SECONDS, REPEATS = 1.0, 3


def started(device: torch.device, seed: int) -> rd.SelfTuner:
    """A small run whose steps have been captured."""
    torch.manual_seed(seed)
    space = rd.HyperSpace(**{f"dropout{i}": rd.Bounded(0.05, low=0.0, high=0.95) for i in range(2)})
    train = data("mlp", 8 * BATCH, seed)
    task = rd.Task(
        space=space, model=mlp(hidden=(WIDTH, WIDTH)), loss=torch.nn.functional.cross_entropy, train=train, valid=train
    )
    options: dict[str, Any] = {"batch_size": BATCH, "epochs": 10**6, "warmup": 0, "train_interval": TRAIN_INTERVAL}
    tuner = rd.SelfTuner(task, device=device, seed=seed, graph="on", **options)
    tuner.model.train()
    with tuner.arithmetic():
        for _ in range((EAGER + 3) * TRAIN_INTERVAL):
            tuner._train_step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return tuner


def on_stream(device: torch.device) -> AbstractContextManager[Any]:
    """Context with a stream of its own on a GPU."""
    if device.type != "cuda":
        return nullcontext()
    context: AbstractContextManager[Any] = torch.cuda.stream(torch.cuda.Stream(device))
    return context


@dataclass(frozen=True)
class Rate:
    """What a way has reached: train steps in a second, and CPU seconds of a step."""

    steps_per_second: float
    cpu_seconds: float


def steps_of(tuner: rd.SelfTuner, until: float) -> int:
    """Train up to a clock time, cycle by cycle; the number of train steps."""
    count = 0
    with on_stream(tuner.device):
        while time.perf_counter() < until:
            for _ in range(TRAIN_INTERVAL):
                tuner._train_step()
            # The host must not run ahead of the device.
            _ = tuner.space.lam.detach().sum().item()
            count += TRAIN_INTERVAL
    return count


def in_turn(tuners: Sequence[rd.SelfTuner], seconds: float) -> Rate:
    """One thread that serves all runs."""
    contexts = [on_stream(tuner.device) for tuner in tuners]
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        for tuner, context in zip(tuners, contexts, strict=True):
            with context:
                for _ in range(TRAIN_INTERVAL):
                    tuner._train_step()
        for tuner in tuners:
            _ = tuner.space.lam.detach().sum().item()
        count += TRAIN_INTERVAL * len(tuners)
    return Rate(count / (time.perf_counter() - began), (time.process_time() - cpu) / count)


def in_threads(tuners: Sequence[rd.SelfTuner], seconds: float) -> Rate:
    """One thread for each run."""
    counts = [0] * len(tuners)
    began, cpu = time.perf_counter(), time.process_time()

    def train(index: int) -> None:
        counts[index] = steps_of(tuners[index], began + seconds)

    threads = [threading.Thread(target=train, args=(index,)) for index in range(len(tuners))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = sum(counts)
    return Rate(count / (time.perf_counter() - began), (time.process_time() - cpu) / count)


def _serve(device: str, seed: int, connection: Any) -> None:
    """A process with one run: it trains until the clock time that it is told, and tells its steps and CPU seconds."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tuner = started(torch.device(device), seed)
    connection.send(0)
    while (until := connection.recv()) is not None:
        cpu = time.process_time()
        count = steps_of(tuner, time.perf_counter() + until - time.time())
        connection.send((count, time.process_time() - cpu))


class Processes:
    """One process for each run."""

    def __init__(self, device: torch.device, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pairs = []
        for seed in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(str(device), seed, there), daemon=True)
            process.start()
            self._pairs.append((process, here))
        for _, connection in self._pairs:
            connection.recv()

    def __call__(self, seconds: float) -> Rate:
        """Let all of them train."""
        began = time.time()
        for _, connection in self._pairs:
            connection.send(began + seconds)
        counts, cpu = zip(*(connection.recv() for _, connection in self._pairs), strict=True)
        return Rate(sum(counts) / (time.time() - began), sum(cpu) / sum(counts))

    def close(self) -> None:
        """End the processes."""
        for process, connection in self._pairs:
            connection.send(None)
            process.join()


def gains(
    device: torch.device, counts: Sequence[int], kinds: Sequence[str], seconds: float, repeats: int
) -> list[dict[str, Any]]:
    """One row for each way and number of runs.

    Args:
        device: the device.
        counts: numbers of runs.
        kinds: ways, from `KINDS`.
        seconds: seconds of one measurement.
        repeats: number of measurements of each way.
    """
    torch.set_num_threads(1)
    tuners = [started(device, seed) for seed in range(max(counts))]
    ways: dict[tuple[str, int], Callable[[float], Rate]] = {("single", 1): partial(in_turn, tuners[:1])}
    opened: list[Processes] = []
    for count in counts:
        for kind in kinds:
            if kind == "processes":
                opened.append(Processes(device, count))
                ways[kind, count] = opened[-1]
            else:
                ways[kind, count] = partial(in_turn if kind == "in turn" else in_threads, tuners[:count])
    found: dict[tuple[str, int], list[Rate]] = {way: [] for way in ways}
    try:
        with tuners[0].arithmetic():
            for _ in range(repeats):
                for way, measure in ways.items():
                    found[way].append(measure(seconds))
    finally:
        for processes in opened:
            processes.close()
    single = found["single", 1]
    return [_row(kind, count, rates, single) for (kind, count), rates in found.items()]


def _row(kind: str, count: int, rates: Sequence[Rate], single: Sequence[Rate]) -> dict[str, Any]:
    gained = [rate.steps_per_second / one.steps_per_second for rate, one in zip(rates, single, strict=True)]
    cpu = [rate.cpu_seconds / one.cpu_seconds for rate, one in zip(rates, single, strict=True)]
    return {
        "way": kind,
        "runs": count,
        "steps_per_second": statistics.median(rate.steps_per_second for rate in rates),
        "gain": statistics.median(gained),
        "cpu": statistics.median(cpu),
        "gains": gained,
    }


def measure(kinds: Sequence[str], counts: Sequence[int], place: Place, findings: Findings) -> None:
    """The gains of some ways."""
    seconds, repeats = (0.1, 1) if place.tiny else (SECONDS, REPEATS)
    rows = gains(place.device, counts, kinds, seconds, repeats)
    findings.note(rows=rows)
    findings.note(text=", ".join(f"{row['runs']} {row['way']}: {row['gain']:.2f}" for row in rows[1:]))


def items(tiny: bool) -> list[Item]:
    """The measurements."""
    counts = (1, 2) if tiny else COUNTS
    return [
        Item("in one process", partial(measure, ("in turn", "threads"), counts), 20.0, 180.0),
        Item("in processes", partial(measure, ("processes",), counts[1:]), 40.0, 240.0),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all ways, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=several(whole()), default=list(COUNTS), metavar="N,N,...")
    parser.add_argument("--seconds", type=number(above=0), default=2.0, help="seconds of one measurement")
    parser.add_argument("--repeats", type=whole(), default=7, help="measurements of each way")
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args(arguments)
    prepare(parser, options.json)
    warnings.simplefilter("ignore")
    device = torch.device(options.device)
    rows = gains(device, options.runs, KINDS, options.seconds, options.repeats)
    for row in rows:
        print(f"{row['runs']} {row['way']}: {row['gain']:.2f}, CPU time per step {row['cpu']:.2f}", flush=True)
    if options.json:
        head = {
            "command": command_line("benchmarks.gpu.streams", arguments),
            "hardware": hardware(device),
            "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            **versions(),
        }
        write(options.json, {**head, "rows": rounded(rows, 4)})


if __name__ == "__main__":
    main()
