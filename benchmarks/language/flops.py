"""FLOPs of self-tuned training of the LSTM of `ptb-lstm` over those of plain training, at the sizes of the page.

    python -m benchmarks.language.flops --json benchmarks/records/language/flops.json

FLOPs are those of products of matrices in a cycle: T_train train steps and one hyper step. The ratio does not depend on
the number of sequences, so there are two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import ray_deltastn as rd
from benchmarks.common.arguments import prepare
from benchmarks.common.machine import quiet, versions
from benchmarks.common.record import command_line, write
from benchmarks.speed import unfused
from ray_deltastn.methods.method import MethodName
from ray_deltastn.tasks.language_networks import LSTMModel
from ray_deltastn.training.options import PresetName

#: Contender, as in `problems` → method and preset.
VARIANTS: dict[str, tuple[MethodName, PresetName]] = {
    "stn": ("stn", "paper"),
    "centered-stn": ("centered-stn", "paper"),
    "delta-stn paper": ("delta-stn", "paper"),
    "delta-stn": ("delta-stn", "recommended"),
}
SEQUENCES = 2


@dataclass(frozen=True)
class Size:
    """Sizes of a network and of its training.

    Attributes:
        words: size of the vocabulary.
        units: units of each layer, and features of a word.
        length: words of a segment.
        tied: whether the decoder has the weight of the embedding.
        train_interval: train steps for each hyper step.
    """

    words: int
    units: int
    length: int
    tied: bool
    train_interval: int


#: Name on the page → sizes.
SIZES = {
    "100,000 words, as above": Size(4963, 200, 35, True, 2),
    "the paper's": Size(10_000, 650, 70, True, 2),
    "the paper's, five train steps": Size(10_000, 650, 70, True, 5),
    "the paper's, five train steps, untied": Size(10_000, 650, 70, False, 5),
}


def flops(size: Size, method: MethodName, preset: PresetName = "paper") -> int:
    """FLOPs of a cycle."""
    torch.manual_seed(0)
    model = LSTMModel(size.words, size.units, size.units, tied=size.tied)
    names = sorted({name for m in model.modules() if isinstance(m, rd.Regularizer) for name in m.names})
    space = rd.HyperSpace(
        **{name: rd.Bounded(0.05, high=0.95, per="batch" if name == "dropconnect" else "example") for name in names}
    )
    tokens = torch.randint(0, size.words, (SEQUENCES * (size.length + 1),))
    data = rd.Segments(tokens, SEQUENCES, size.length, model.first_state())
    task = rd.Task(space, model, F.cross_entropy, data, data)
    tuner = rd.SelfTuner(task, method, preset=preset, epochs=1, warmup=0.0, train_interval=1, device="cpu")
    x, y = tuner.train.next()
    found = size.train_interval * _counted(lambda: tuner.algorithm.train_step(x, y))
    if tuner.method.tunes:
        tuner.model.eval()
        found += _counted(lambda: tuner.algorithm.hyper_step(x, y))
    return found


def _counted(step: Callable[[], Any]) -> int:
    with unfused(), FlopCounterMode(display=False) as counter:
        step()
    found: int = counter.get_total_flops()
    return found


def rows(sizes: dict[str, Size]) -> list[dict[str, Any]]:
    """One row for each size, with the ratio of each variant to plain training."""
    found = []
    for name, size in sizes.items():
        plain = flops(size, "fixed")
        ratios = {variant: round(flops(size, *options) / plain, 3) for variant, options in VARIANTS.items()}
        found.append({"name": name, **asdict(size), "ratios": ratios})
        print(name, ratios, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language.flops", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args(arguments)
    prepare(parser, options.json)
    quiet()
    found = rows(SIZES)
    if options.json:
        command = command_line("benchmarks.language.flops", arguments)
        write(options.json, {"command": command, "versions": versions(), "rows": found})


if __name__ == "__main__":
    main()
