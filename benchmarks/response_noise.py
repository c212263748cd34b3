"""Noise of the gradient of the response Θ, with and without antithetic pairs of perturbations.

    python -m benchmarks.response_noise --task fashion-cnn --set images=10000 --epochs 2,6,12 --seeds 5 --json FILE

The command stops a run after a few epochs. With all parameters fixed, it computes the gradient of Θ on `--draws`
minibatches, drawn with replacement and with new perturbations. It does so for each share of the minibatch
(`--fractions`) in two ways:

- `independent`: one perturbation for each example;
- `antithetic`: half as many examples, each under ε and −ε.

Each value is the trace of the covariance of the gradient, which is the sum of the variances of its entries. `ratio` is
`antithetic` divided by `independent`. Both ways need the same amount of arithmetic. They have the same mean, except
with batch normalisation, where both members of a pair enter the same statistics.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import ray_deltastn as rd
from benchmarks.common import record
from benchmarks.common.arguments import number, prepare, several, whole
from benchmarks.common.hypergradients import tuner_of
from benchmarks.common.machine import hardware, versions
from benchmarks.images import PAPER, change, configuration
from ray_deltastn.methods import StepOptions, Steps


def noise(tuner: rd.SelfTuner, fraction: float, antithetic: bool, draws: int, seed: int = 0) -> float:
    """Trace of the covariance of Θ's gradient at the current state of a run; the run is not changed."""
    objective, weights = tuner.objective, tuner.optimizers.weights
    steps = Steps(objective, weights, options=StepOptions(response_fraction=fraction, antithetic=antithetic))
    x, y = (torch.cat(parts) for parts in zip(*tuner.train.in_order(), strict=True))
    generator, own = torch.Generator().manual_seed(seed), objective.generator
    assert own is not None  # the objective of a run has a generator
    before = own.get_state()
    was_training = tuner.model.training
    tuner.model.train()
    found = []
    for _ in range(draws):
        rows = torch.randint(len(x), (tuner.settings.batch_size,), generator=generator).to(x.device)
        gradients = steps.response_gradients(x[rows].to(tuner.device), y[rows].to(tuner.device))
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    tuner.model.train(was_training)
    own.set_state(before)
    return float(torch.stack(found).double().var(0).sum())


def look(tuner: rd.SelfTuner, fractions: Sequence[float], draws: int) -> list[dict[str, Any]]:
    """One row per share of the minibatch, at the current state of a run."""
    rows = []
    for fraction in fractions:
        one, two = (noise(tuner, fraction, antithetic, draws) for antithetic in (False, True))
        row = {
            "seed": tuner.settings.seed,
            "epoch": tuner.epoch,
            "fraction": fraction,
            "independent": one,
            "antithetic": two,
            "ratio": two / one if one else math.nan,
        }
        rows.append(row)
        print("  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median, smallest and largest ratio over the runs, for each epoch and share of the minibatch."""
    found = []
    for (epoch, fraction), mine in record.cases(rows, ("epoch", "fraction")):
        ratios = [row["ratio"] for row in mine]
        found.append(
            {
                "epoch": epoch,
                "fraction": fraction,
                "n": len(ratios),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
        )
    summed: list[dict[str, Any]] = record.rounded(found)
    return summed


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, stop after each of the given epochs, and measure there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", default="fashion-cnn", help=f"{', '.join(PAPER)}, or 'module:function'")
    parser.add_argument("--epochs", type=several(whole()), default=[2, 6, 12], help="epochs after which to measure")
    parser.add_argument("--fractions", type=several(number(above=0, most=1)), default=[0.25, 1.0])
    parser.add_argument("--draws", type=whole(2), default=50)
    parser.add_argument("--seeds", type=whole(), default=1, help="number of runs, with the seeds 0, 1, …")
    parser.add_argument("--set", type=change, action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--threads", type=whole(), default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", rd.RunWarning)
    try:
        configs = [
            configuration(options.task, "delta-stn", max(options.epochs), seed, dict(options.changes))
            for seed in range(options.seeds)
        ]
        tuner = tuner_of(configs[0])
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json)
    shown = {k: v for k, v in configs[0].items() if k not in ("data_root", "seed")}
    head = {
        "command": record.command_line("benchmarks.response_noise", arguments),
        "config": shown,
        "draws": options.draws,
        "hardware": hardware(tuner.device),
        **versions(),
    }
    rows: list[dict[str, Any]] = []
    for config in configs:
        tuner = tuner if config is configs[0] else tuner_of(config)
        while not tuner.done:
            tuner.step()
            if tuner.epoch in options.epochs:
                rows += look(tuner, options.fractions, options.draws)
                if options.json:
                    record.write(options.json, record.rounded({**head, "summary": summary(rows), "rows": rows}))
    if not rows:
        sys.exit(
            f"a run must reach an epoch of `--epochs`, got none; the last run stopped because: {tuner.stop_reason}"
        )
    for line in summary(rows):
        print("  ".join(f"{key} {value:.4g}" for key, value in line.items()))


if __name__ == "__main__":
    main()
