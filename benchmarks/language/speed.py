"""Seconds of a train step of a language model: with PyTorch's fused LSTM, with this package's cell, and self-tuned.

    python -m benchmarks.language.speed --json benchmarks/records/language/speed.json

Displaced passes make one step of the LSTM after another, because the fused kernel has no forward-mode rule. So a
self-tuned step costs more for two reasons: it has more passes, and these have no fused kernel. `own cell` is plain
training without the fused kernel. Variants are measured in turn; a row has the median of the CPU seconds of a step, and
its ratio to the fused plain step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.arguments import prepare, whole
from benchmarks.common.machine import quiet, versions
from benchmarks.common.record import command_line, write
from benchmarks.speed import NETS, TRAIN_INTERVAL, Cycle
from ray_deltastn.response.passes import SEQUENCE, Moved

NET = "language-tied"
#: Name of a variant → method, and whether the LSTM has this package's cell in all passes.
VARIANTS: dict[str, tuple[Any, bool]] = {
    "plain, fused LSTM": ("fixed", False),
    "plain, own cell": ("fixed", True),
    "stn": ("stn", False),
    "centered-stn": ("centered-stn", False),
    "delta-stn": ("delta-stn", False),
}


def without_kernel(model: nn.Module) -> None:
    """Let the LSTM layers of a model make one step after another, in place."""
    for m in model.modules():
        if isinstance(m, nn.LSTM):
            m.forward = partial(SEQUENCE.run, m, Moved(m, {}, False))  # type: ignore[method-assign]


def cycles() -> dict[str, Callable[[], None]]:
    """A cycle of each variant."""
    found: dict[str, Callable[[], None]] = {}
    for name, (method, own) in VARIANTS.items():
        cycle = Cycle(NET, method, 1.0, NETS[NET].batch)
        if own:
            without_kernel(cycle.tuner.model)
        found[name] = cycle
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all variants in turn, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=whole(), default=5, help="timed cycles of each variant")
    parser.add_argument("--threads", type=whole(), default=1)
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args(arguments)
    prepare(parser, options.json)
    torch.set_num_threads(options.threads)
    quiet()
    ready = cycles()
    for cycle in ready.values():
        cycle()
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(options.rounds):
        for name, cycle in ready.items():
            started = time.process_time()
            cycle()
            taken[name].append((time.process_time() - started) / TRAIN_INTERVAL)
    first = next(iter(taken.values()))
    rows = [
        {
            "variant": name,
            "seconds": round(statistics.median(seconds), 5),
            "ratio": round(statistics.median(s / f for s, f in zip(seconds, first, strict=True)), 3),
        }
        for name, seconds in taken.items()
    ]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if options.json:
        command = command_line("benchmarks.language.speed", arguments)
        write(options.json, {"command": command, "threads": options.threads, "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
