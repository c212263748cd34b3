"""Self-tuning on problems with known answers (Appendix H.1; Figures 3, 4, 7 and 8 of the paper).

    python -m benchmarks.toy --problem ridge --data bostonHousing --rows-per-dim 4 --json FILE --plot FILE.png
    python -m benchmarks.toy --rows FILE.json --json FILE.json --plot FILE.png

The second form runs nothing. It draws the picture and writes the summary again from an existing record. If the record
has no command, the other arguments of this form become its command.

`--problem inverted-dropout` divides by the share that is kept, which H.2 does not. All problems are in
`benchmarks.common.toy_problems`.

The settings are those of the paper: T_train = 10, T_valid = 1, 100 warm-up steps, fixed σ = 1, RMSProp for λ. The paper
does not give the momentum of its toy runs. `--momentum` is 0.9 by default, as in all its other experiments. The
gradients of w₀ and of Θ are clipped at a norm of 1 (`--clip-grad`) for all methods. With σ = 1 the penalty e^(λ+ε) of
an example has a heavy tail, and with this momentum runs diverge without clipping. The paper does not mention clipping.
We chose momentum and clipping by Δ-STN's regret on ridge with four rows per dimension, pooled over bostonHousing,
concrete and wine-quality-red. `docs/results/toy.md` has the results without them, and on other data sets.

There is one row for each data set, method and seed. λ is unconstrained. The seed determines the split, the initial
weights, and so the optimum.

- `lambda_final`: mean of λ over the last 100 hyper steps; null if the run diverged.
- `regret_initial`, `regret_final`: L_V(λ, w*(λ)) / min L_V − 1 with the exact inner solution w*(λ).
- `max_early_excursion`: largest distance of λ from the interval between its initial value and the optimum, on either
  side, in the first tenth of the cycles. It is zero for a run that goes straight to the optimum.
- `seconds`: process time of the training alone.
- `trajectory`: λ at the start and after hyper steps, evenly thinned to at most 100 points; the last point is the last
  λ.

The record's `summary` has mean, standard deviation and median over the seeds for each data set and method. A run that
diverged counts as infinite. `lambda_error` is λ_final − λ_optimal over the runs whose optimum is not at the edge of the
search range. The file is written after each run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

import ray_deltastn as rd
from benchmarks.common import record
from benchmarks.common.arguments import number, prepare, whole
from benchmarks.common.looks import LOOKS
from benchmarks.common.machine import versions
from benchmarks.common.record import evenly, rounded
from benchmarks.common.toy_data import load, split
from benchmarks.common.toy_problems import Problem
from ray_deltastn.methods import get_method
from ray_deltastn.training.options import GraphName

TRAIN_INTERVAL, WARMUP_STEPS = 10, 100
FINAL, POINTS = 100, 100
#: Keys that the rows of a record need to be drawn again.
KEYS = (
    "problem",
    "data",
    "method",
    "seed",
    "lambda_initial",
    "lambda_final",
    "lambda_optimal",
    "regret_initial",
    "regret_final",
    "max_early_excursion",
    "seconds",
    "trajectory",
    "regret_trajectory",
    "optimum_at_edge",
    "cycles",
    "training_rows",
    "dimension",
)
#: Keys that are equal in rows that differ only in their seed.
CASE = ("problem", "data", "method")


def tuner_of(
    problem: Problem,
    method: str,
    seed: int = 0,
    *,
    cycles: int = 3000,
    lr: float = 0.03,
    hyper_lr: float = 0.03,
    momentum: float = 0.9,
    clip_grad: float | None = 1.0,
    graph: GraphName = "on",
    warmup_steps: int = WARMUP_STEPS,
    scale_lr: float | None = None,
    **settings: Any,
) -> rd.SelfTuner:
    """One run of `SelfTuner` before its start; it makes a single report.

    Args:
        problem: the problem, with its data.
        method: name of a method that tunes.
        seed: seed of initial weights, order of examples and perturbations.
        cycles: number of hyper steps; ten train steps come before each.
        lr: learning rate of w₀ and Θ.
        hyper_lr: learning rate of λ.
        momentum: momentum of w₀ and Θ.
        clip_grad: largest gradient norm, for w₀ and for Θ separately; None for no clipping.
        graph: see `Settings`; it does not change the numbers.
        warmup_steps: train steps before the first cycle.
        scale_lr: learning rate of σ; None keeps σ = 1.
        settings: further options of `SelfTuner`.
    """
    steps = warmup_steps + cycles * TRAIN_INTERVAL
    of = get_method(method)
    task = problem.task(seed, linearized=of.responds and of.linearized)
    return rd.SelfTuner(
        task,
        of,
        preset="paper",
        lr=lr,
        hyper_lr=hyper_lr,
        momentum=momentum,
        batch_size=problem.batch_size,
        epochs=steps,
        steps_per_report=steps,
        train_interval=TRAIN_INTERVAL,
        warmup_steps=warmup_steps,
        clip_grad=clip_grad,
        scale_lr=scale_lr,
        tune_scale=scale_lr is not None,
        seed=seed,
        device="cpu",
        graph=graph if of.responds else "off",
        **settings,
    )


def trajectory(problem: Problem, method: str, seed: int = 0, **options: Any) -> tuple[list[float], float]:
    """λ at the start and after each hyper step of one run, and the run's process time in seconds.

    Args:
        problem: the problem, with its data.
        method: name of a method that tunes.
        seed: seed of initial weights, order of examples and perturbations.
        options: further arguments of `tuner_of`.
    """
    tuner = tuner_of(problem, method, seed, **options)
    lam = tuner.space.lam
    visited = [lam.detach().clone()]
    hyper_step = tuner.algorithm.hyper_step

    def noted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = hyper_step(x, y)
        visited.append(lam.detach().clone())
        return loss

    tuner.algorithm.hyper_step = noted  # type: ignore[method-assign]
    started = time.process_time()
    tuner.step()  # a single report at the end, because evaluations would cost more than the training
    seconds = time.process_time() - started
    return torch.cat(visited).tolist(), seconds


def excursion(path: Sequence[float], optimum: float) -> float:
    """Largest distance of a path from the interval between its first point and the optimum; NaN if it is not finite."""
    low, high = sorted((path[0], optimum))
    if not all(map(math.isfinite, path)):
        return math.nan
    return max(0.0, low - min(path), max(path) - high)


def measure(problem: Problem, method: str, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Run one method on one problem, compare it with the exact solution, and return the row.

    Args:
        problem: the problem, with its data.
        method: name of a method that tunes.
        seed: seed of the run.
        options: further arguments of `tuner_of`.
    """
    path, seconds = trajectory(problem, method, seed, **options)
    cycles = len(path) - 1
    final = statistics.fmean(path[1:][-FINAL:])
    optimum, _ = problem.optimum()
    shown = [path[i] for i in evenly(cycles, POINTS)]
    regrets = problem.regret(torch.tensor([path[0], final, *shown], dtype=torch.float64)).tolist()
    row = {
        "problem": problem.kind if problem.divided or problem.kind != "ridge" else "ridge, undivided",
        "data": problem.data.name,
        "method": method,
        "seed": seed,
        "lambda_initial": path[0],
        "lambda_final": final,
        "lambda_optimal": optimum,
        "regret_initial": regrets[0],
        "regret_final": regrets[1],
        "max_early_excursion": excursion(path[: max(1, cycles // 10) + 1], optimum),
        "seconds": round(seconds, 3),
        "trajectory": shown,
        "regret_trajectory": regrets[2:],
        "optimum_at_edge": problem.at_edge(),
        "cycles": cycles,
        "training_rows": len(problem.data.x),
        "validation_rows": len(problem.data.x_valid),
        "dimension": problem.dimension,
        "batch_size": problem.batch_size,
        **options,
        **versions(),
    }
    return {key: rounded(value) for key, value in row.items()}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw λ over hyper steps (above) and regret (below): one column per data set, one colour per method.

    Thin lines are the seeds. Thick lines are their mean, or their median for the regret. The dashed line is the
    optimum, with a band for its range over the splits. Optima at the edge of the search range (no regularisation is
    best) are not drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    sets = list(dict.fromkeys(row["data"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = plt.subplots(
        2, len(sets), figsize=(1.2 + 4.2 * len(sets), 6.2), sharex=True, squeeze=False, layout="constrained"
    )
    for column, name in enumerate(sets):
        above, below = axes[0][column], axes[1][column]
        for method in methods:
            mine = [row for row in rows if row["data"] == name and row["method"] == method]
            if not mine:
                continue
            colour, width, _ = LOOKS[method]
            step = np.linspace(0, mine[0]["cycles"], len(mine[0]["trajectory"]))
            lam = np.array([row["trajectory"] for row in mine], float)
            regret = 100 * np.array([row["regret_trajectory"] for row in mine], float)
            for axis, lines, middle in ((above, lam, lam.mean(0)), (below, regret, np.median(regret, 0))):
                if len(mine) > 1:
                    axis.plot(step, lines.T, color=colour, linewidth=width / 3, alpha=0.35)
                axis.plot(step, middle, color=colour, linewidth=width, label=method)
        optima = [row["lambda_optimal"] for row in rows if row["data"] == name and not row["optimum_at_edge"]]
        if optima:
            above.axhline(statistics.fmean(optima), color="black", linestyle="--", linewidth=1.2, label="optimum")
            above.axhspan(min(optima), max(optima), color="black", alpha=0.06, linewidth=0)
        one = next(row for row in rows if row["data"] == name)
        above.set_title(f"{name}\n{one['training_rows']} training rows, {one['dimension']} features", fontsize=10)
        below.set_yscale("log")
        below.set_ylim(bottom=1e-3)
        below.axhline(1.0, color="black", linewidth=0.6, linestyle=":")
        below.set_xlabel("hyper steps")
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.2)
    axes[0][0].set_ylabel("λ (unconstrained)")
    axes[1][0].set_ylabel("regret, %")
    seeds = len({row["seed"] for row in rows})
    figure.suptitle(f"{rows[0]['problem']}, {seeds} seed{'s' if seeds > 1 else ''}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, standard deviation and median over the seeds, per problem, data set and method."""
    keys = ("regret_initial", "regret_final", "max_early_excursion")
    return [
        {
            **dict(zip(CASE, case, strict=True)),
            "n": len(mine),
            **record.off(mine),
            **{key: record.figures(row[key] for row in mine) for key in keys},
        }
        for case, mine in record.cases(rows, CASE)
    ]


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Medians over the seeds as text: one line per data set and method."""
    text = []
    for (_, name, method), mine in record.cases(rows, CASE):

        def median(key: str, mine: list[dict[str, Any]] = mine) -> float:
            return statistics.median(math.inf if row[key] is None else row[key] for row in mine)

        text.append(
            f"{name:24} {method:14} median regret {100 * median('regret_initial'):7.3f} % -> "
            f"{100 * median('regret_final'):7.3f} %   early excursion {median('max_early_excursion'):.2f}   "
            f"{1000 * median('seconds') / mine[0]['cycles']:.1f} ms per cycle"
        )
    return text


RECORD = record.Kind(
    "benchmarks.toy", KEYS, ("trajectory", "regret_trajectory"), POINTS, tuple(versions()), summary, lines, plot
)


def rows_per_dim(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 'all' or a whole number >= 1, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per run and the medians, and write the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--problem", choices=Problem.KINDS, default="ridge")
    parser.add_argument(
        "--data",
        default="diabetes",
        help="comma-separated: files .npz with X and y, sets in <data root>/uci, or diabetes",
    )
    parser.add_argument("--data-root", type=Path, help="default: the environment variable RAY_DELTASTN_DATA")
    parser.add_argument("--methods", default="stn,centered-stn,delta-stn")
    parser.add_argument(
        "--rows-per-dim",
        type=rows_per_dim,
        default="all",
        metavar="K|all",
        help="K training rows per feature and up to 200 validation rows; all: 80 %% and 20 %% of the rows",
    )
    parser.add_argument("--seeds", type=whole(), default=5)
    parser.add_argument("--cycles", type=whole(), default=3000)
    parser.add_argument("--lr", type=number(above=0), default=0.03)
    parser.add_argument("--hyper-lr", type=number(above=0), default=0.03)
    parser.add_argument(
        "--momentum",
        type=number(least=0, below=1),
        default=0.9,
        help="momentum of w₀ and Θ; the paper gives none for its toy problems",
    )
    parser.add_argument(
        "--clip-grad", type=number(least=0), default=1.0, help="largest gradient norm of w₀ and of Θ; 0 for no clipping"
    )
    parser.add_argument(
        "--graph",
        choices=get_args(GraphName),
        default="on",
        help="capture and replay steps, for methods that learn a response",
    )
    parser.add_argument("--no-divide", action="store_true", help="ridge penalty not divided by n (Figure 8)")
    parser.add_argument("--initial", type=number(), help="initial penalty or dropout rate (default: Appendix H.1's)")
    RECORD.add_arguments(parser)
    options = parser.parse_args(arguments)
    command = RECORD.command(arguments)
    if options.rows:
        RECORD.redraw(parser, options, command)
        return
    warnings.simplefilter("ignore", rd.RunWarning)
    settings = {name: getattr(options, name) for name in ("cycles", "lr", "hyper_lr", "momentum", "graph")}
    settings["clip_grad"] = options.clip_grad or None
    methods = options.methods.split(",")
    problems = []
    try:
        for method in methods:
            if not get_method(method).tunes:
                raise ValueError(f"`--methods` must tune hyperparameters, got {method!r}")
        for name in options.data.split(","):
            loaded = load(name, options.data_root)
            for seed in range(options.seeds):
                data = split(*loaded, seed, options.rows_per_dim)
                problems.append((seed, Problem(options.problem, data, not options.no_divide, options.initial)))
        for method in methods:  # finds unsuitable methods and wrong options before the first run
            tuner_of(problems[0][1], method, **settings).release()
    except (FileNotFoundError, TypeError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json, options.plot)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for seed, problem in problems:
        for method in methods:
            row = measure(problem, method, seed, **settings)
            rows.append(row)
            final, regret = (math.nan if row[key] is None else row[key] for key in ("lambda_final", "regret_final"))
            print(
                f"{row['problem']}  {row['data']}  {method:14} seed {seed}  "
                f"λ {row['lambda_initial']:.2f} -> {final:.2f} (optimum {row['lambda_optimal']:.2f})  "
                f"regret {100 * row['regret_initial']:.2f} % -> {100 * regret:.3f} %  {row['seconds']:.0f} s",
                flush=True,
            )
            if options.json:
                RECORD.save(options.json, command, rows, missing=len(problems) * len(methods) - len(rows))
    print("\n".join(lines(rows)))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
