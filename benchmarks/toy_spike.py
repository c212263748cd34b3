"""STN's spike of λ early in training, by the learning rates of λ (α₂) and of σ (α₃): a reviewer's question.

    python -m benchmarks.toy_spike --data wine-quality-red,concrete --json FILE --plot FILE.png

A reviewer asked about the ridge figure: "Why is there a huge spike in the λ parameter for STN? Can the spike be
mitigated by reducing the learning rate parameter α₃?" In Algorithms 1 and 2 α₂ moves λ and α₃ moves σ. The paper's
toy problems hold σ at 1 (H.1), so α₃ has no effect in that figure. Two sweeps therefore:

- `hyper_lr`: α₂ varies, and σ is fixed at 1 as in H.1.
- `scale_lr`: α₃ varies, α₂ is 0.03, and σ is tuned from 1 with the entropy weight 0.001 of the paper.

The spike needs weights that still move and a λ far from 0 (`benchmarks.toy_decoupling` explains why), so the other
settings are the first ones of that benchmark: lr 0.001, no warm-up, all rows. Data sets of 1,000 points or more start
at λ = ln 50. All runs of a sweep have the same number of hyper steps.

One row per sweep, data set, method, learning rate and seed:

- `early_excursion`: largest distance of λ from the interval between its initial value and the optimum, in the first 200
  hyper steps, which are a whole run of `benchmarks.toy_decoupling`.
- `excursion`: the same in the whole run. On a flat validation loss it also contains late walks, which are no spike.
- `steps_outside`: number of hyper steps after which λ is more than 0.3 outside this interval.
- `regret_initial`, `regret_final`: as in `benchmarks.toy`; the second is at the last λ.
- `scale_final`: the last σ.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import ray_deltastn as rd
from benchmarks.common import record
from benchmarks.common.arguments import number, prepare, several, whole
from benchmarks.common.looks import LOOKS
from benchmarks.common.machine import versions
from benchmarks.common.record import rounded
from benchmarks.common.toy_data import load, split
from benchmarks.common.toy_problems import Problem
from benchmarks.toy import excursion, tuner_of

#: Sweep → name of its learning rate in the picture.
SWEEPS = {"hyper_lr": "α₂, learning rate of λ (σ fixed)", "scale_lr": "α₃, learning rate of σ (α₂ = 0.03)"}
LR, HYPER_LR = 0.001, 0.03
#: Number of hyper steps that count as early.
EARLY = 200
#: A distance that a run without a spike may have: the first step of RMSProp with 0.03 is 0.3 long.
OUTSIDE = 0.3
CASE = ("sweep", "data", "method", "rate")
KEYS = (*CASE, "seed", "lambda_initial", "lambda_optimal", "lambda_final", "early_excursion", "steps_outside")


def trajectory(
    problem: Problem, method: str, seed: int, cycles: int, hyper_lr: float, scale_lr: float | None
) -> tuple[list[float], float]:
    """λ at the start and after each hyper step of one run, and the last σ.

    Args:
        problem: a ridge problem, with its data.
        method: name of a method that tunes.
        seed: seed of initial weights, order of examples and perturbations.
        cycles: number of hyper steps.
        hyper_lr: α₂.
        scale_lr: α₃; None keeps σ = 1.
    """
    tuner = tuner_of(problem, method, seed, cycles=cycles, lr=LR, hyper_lr=hyper_lr, scale_lr=scale_lr, warmup_steps=0)
    lam = tuner.space.lam
    visited = [lam.item()]
    hyper_step = tuner.algorithm.hyper_step

    def noted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = hyper_step(x, y)
        visited.append(lam.item())
        return loss

    tuner.algorithm.hyper_step = noted  # type: ignore[method-assign]
    tuner.step()
    return visited, tuner.space.scale.item()


def outside(path: Sequence[float], optimum: float) -> int:
    """Number of points of a path that are more than `OUTSIDE` away from the interval of its start and the optimum."""
    low, high = sorted((path[0], optimum))
    return sum(not low - OUTSIDE <= lam <= high + OUTSIDE for lam in path)


def measure(problem: Problem, method: str, seed: int, cycles: int, sweep: str, rate: float) -> dict[str, Any]:
    """Run one setting, and return its row."""
    hyper_lr, scale_lr = (rate, None) if sweep == "hyper_lr" else (HYPER_LR, rate)
    started = time.process_time()
    path, scale = trajectory(problem, method, seed, cycles, hyper_lr, scale_lr)
    seconds = time.process_time() - started
    optimum, _ = problem.optimum()
    regrets = problem.regret(torch.tensor([path[0], path[-1]], dtype=torch.float64)).tolist()
    row = {
        "sweep": sweep,
        "data": problem.data.name,
        "method": method,
        "rate": rate,
        "seed": seed,
        "lambda_initial": path[0],
        "lambda_optimal": optimum,
        "lambda_final": path[-1],
        "early_excursion": excursion(path[: EARLY + 1], optimum),
        "excursion": excursion(path, optimum),
        "steps_outside": outside(path, optimum),
        "regret_initial": regrets[0],
        "regret_final": regrets[1],
        "scale_final": scale,
        "cycles": cycles,
        "seconds": round(seconds, 2),
        **versions(),
    }
    return {key: rounded(value) for key, value in row.items()}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the early excursion against the learning rate: one row per data set, one column per sweep.

    Lines are medians over the seeds, and points are runs.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sets = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = plt.subplots(
        len(sets), 2, figsize=(9, 1 + 2.9 * len(sets)), sharey="row", squeeze=False, layout="constrained"
    )
    for line, name in zip(axes, sets, strict=True):
        for axis, (sweep, title) in zip(line, SWEEPS.items(), strict=True):
            for method in dict.fromkeys(row["method"] for row in rows):
                mine = [row for row in rows if (row["data"], row["sweep"], row["method"]) == (name, sweep, method)]
                found = record.cases(mine, ("rate",))
                values = [
                    [math.nan if r["early_excursion"] is None else r["early_excursion"] for r in runs]
                    for _, runs in found
                ]
                rates = [rate for (rate,), _ in found]
                colour = LOOKS[method][0]
                axis.plot(rates, [statistics.median(v) for v in values], color=colour, linewidth=1.8, label=method)
                for rate, points in zip(rates, values, strict=True):
                    axis.plot([rate] * len(points), points, "o", color=colour, ms=4, alpha=0.6)
            axis.set_xscale("log")
            axis.set_xlabel(title)
            axis.set_title(name, fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.2)
        line[0].set_ylabel("early excursion of λ")
    axes[0][0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median and largest excursions, and median steps outside, regrets and σ over the seeds, per setting."""
    entries = []
    for case, mine in record.cases(rows, CASE):
        entry: dict[str, Any] = {**dict(zip(CASE, case, strict=True)), "n": len(mine)}
        for key in ("early_excursion", "excursion"):
            away = [row[key] for row in mine]
            entry[key] = {**record.figures(away), "largest": None if None in away else max(away)}
        for key in ("steps_outside", "regret_initial", "regret_final", "scale_final"):
            entry[key] = record.figures(row[key] for row in mine)
        entries.append(entry)
    return entries


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per setting."""

    def shown(value: float | None, digits: int = 2) -> str:
        return "diverged" if value is None else f"{value:.{digits}f}"

    return [
        f"{e['sweep']:9} {e['data']:22} {e['method']:13} rate {e['rate']:<6g} "
        f"early excursion {shown(e['early_excursion']['median'])} ({shown(e['early_excursion']['largest'])})  "
        f"steps outside {shown(e['steps_outside']['median'], 0)}  "
        f"regret {shown(e['regret_final']['median'], 4)}  σ {shown(e['scale_final']['median'])}"
        for e in summary(rows)
    ]


RECORD = record.Kind("benchmarks.toy_spike", KEYS, (), 1, tuple(versions()), summary, lines, plot)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both sweeps, print the medians, and write the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="diabetes", help="comma-separated, as for benchmarks.toy")
    parser.add_argument("--data-root", type=Path, help="default: the environment variable RAY_DELTASTN_DATA")
    parser.add_argument("--methods", default="stn,delta-stn")
    parser.add_argument(
        "--hyper-lrs", type=several(number(above=0)), default="0.003,0.01,0.03,0.1", help="values of α₂"
    )
    parser.add_argument(
        "--scale-lrs", type=several(number(above=0)), default="0.001,0.01,0.03,0.1", help="values of α₃"
    )
    parser.add_argument("--seeds", type=whole(), default=3)
    parser.add_argument("--cycles", type=whole(), default=1000, help="number of hyper steps of a run")
    RECORD.add_arguments(parser)
    options = parser.parse_args(arguments)
    command = RECORD.command(arguments)
    if options.rows:
        RECORD.redraw(parser, options, command)
        return
    problems = []
    methods = options.methods.split(",")
    try:
        for name in options.data.split(","):
            loaded = load(name, options.data_root)
            problems += [(seed, Problem("ridge", split(*loaded, seed))) for seed in range(options.seeds)]
        for method in methods:  # finds unsuitable methods before the first run
            tuner_of(problems[0][1], method).release()
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json, options.plot)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", rd.RunWarning)
    rates = [("hyper_lr", rate) for rate in options.hyper_lrs] + [("scale_lr", rate) for rate in options.scale_lrs]
    planned = len(rates) * len(problems) * len(methods)
    rows: list[dict[str, Any]] = []
    for sweep, rate in rates:
        for seed, problem in problems:
            for method in methods:
                rows.append(measure(problem, method, seed, options.cycles, sweep, rate))
                if options.json:
                    RECORD.save(options.json, command, rows, missing=planned - len(rows))
        print("\n".join(lines([row for row in rows if (row["sweep"], row["rate"]) == (sweep, rate)])), flush=True)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
