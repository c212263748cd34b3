"""Effect of centring alone: spikes of λ early in training (Figure 9 and the author response).

    python -m benchmarks.toy_decoupling --data wine-quality-red,concrete,bostonHousing --json FILE --plot FILE.png

One gradient step moves an uncentred response Φ by −α·∇_w L_T·λᵀ. The next hypergradient then contains the term −α·(∇_w
L_T · ∇_w L_V)·λ (Eqn. 3.8). While the two gradients have similar directions, this term moves λ away from 0, even if the
optimum is elsewhere. With a centred response the term is zero. By (3.8) a spike needs three conditions: a small angle
between the gradients, weights that still change much, and a λ far from 0. Here Φ = u·W_resp has one direction, and both
gradients count only through their components in this direction. So the term can be small for some seeds, or have the
opposite sign. Two settings therefore differ from `benchmarks.toy`:

- There is no warm-up, and lr is 0.001 (`--settings LR:WARMUP`). After 100 steps at 0.03 a linear regression is fitted,
  and the gradient is close to zero. `--settings` takes several pairs. All of them are measured, and the first is drawn.
- All rows are used, 80 % and 20 %, as in H.1. Data sets of 1,000 points or more start at λ = ln 50 = 3.9. Smaller sets
  start at λ = ln 1 = 0, where (3.8) is zero. They are the control.

The other settings are the same: T_train = 10, T_valid = 1, fixed σ = 1, RMSProp with 0.03 for λ, momentum 0.9, and
gradients clipped at 1.

| variant         | response input | w₀ trained on          | prediction                                |
|-----------------|----------------|------------------------|-------------------------------------------|
| `stn`           | λ+ε            | perturbed (2.5)        | f(x, w₀+Θδ)                               |
| `centered-only` | ε              | perturbed, one pass    | f(x, w₀+Θδ)                               |
| `centered-stn`  | ε              | unperturbed (3.9)      | f(x, w₀+Θδ)                               |
| `delta-stn`     | ε              | unperturbed (3.9)      | linearised; the same on a linear problem  |

One row for each setting, data set, variant and seed:

- `excursion`: largest distance of λ from the interval between its initial value and the optimum, on either side, in the
  whole run. The first step of RMSProp is about 0.3 long, so an excursion of 0.3 is not a spike.
- `angle_initial`: degrees between ∇_v L_T(λ, v) and ∇_v L_V(v) on the full sets before the first step.
- `trajectory`, `angle`: λ and this angle at the current weights (for `stn` at r(λ)), at the start and after hyper
  steps, thinned to at most 100 points. Only rows of the drawn setting have them.

The record's `summary` has statistics over the seeds. `--rows FILE.json` draws and summarises a record again, as in
`benchmarks.toy`.
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
from torch import Tensor

import ray_deltastn as rd
from benchmarks.common import record
from benchmarks.common.arguments import number, prepare, whole
from benchmarks.common.looks import LOOKS
from benchmarks.common.machine import versions
from benchmarks.common.record import evenly, rounded
from benchmarks.common.toy_data import load, split
from benchmarks.common.toy_jacobian import linear_map
from benchmarks.common.toy_problems import Problem
from benchmarks.toy import TRAIN_INTERVAL, excursion, rows_per_dim
from ray_deltastn.methods import Method, get_method

VARIANTS: dict[str, Method] = {
    "stn": get_method("stn"),
    "centered-only": Method("centered-only", split=False, linearized=False),
    "centered-stn": get_method("centered-stn"),
    "delta-stn": get_method("delta-stn"),
}
#: Keys that are equal in rows that differ only in variant and seed.
CASE = ("problem", "data", "lr", "warmup")
#: Keys that the rows of a record need to be drawn again.
KEYS = (
    *CASE,
    "variant",
    "seed",
    "lambda_initial",
    "lambda_final",
    "lambda_optimal",
    "optimum_at_edge",
    "excursion",
    "angle_initial",
    "training_rows",
    "dimension",
)
POINTS = 100


def angle(problem: Problem, lam: Tensor, v: Tensor) -> float:
    """Degrees between ∇_v L_T(λ, v) and ∇_v L_V(v) on the full sets; NaN if one of them is zero.

    Args:
        problem: a ridge problem, with its data.
        lam: λ () in float64.
        v: the weights (d,) in float64.
    """
    data = problem.data
    first = problem.covariance @ v - problem.correlation + problem.strength(lam)[0] * problem.diagonal * v
    second = data.x_valid.T @ (data.x_valid @ v - data.t_valid) / len(data.t_valid)
    # This form is accurate for small angles. The acos of a rounded cosine gives 1e-6 degrees for equal gradients.
    first, second = first / first.norm(), second / second.norm()
    return math.degrees(2 * math.atan2((first - second).norm().item(), (first + second).norm().item()))


def trajectory(
    problem: Problem, method: Method, seed: int, *, cycles: int, lr: float, warmup: int, hyper_lr: float = 0.03
) -> tuple[list[float], list[float]]:
    """λ and the angle, at the start and after each hyper step of one run of `SelfTuner`.

    Args:
        problem: a ridge problem, with its data.
        method: a method that tunes.
        seed: seed of initial weights, order of examples and perturbations.
        cycles: number of hyper steps; ten train steps come before each.
        lr: learning rate of w₀ and Θ.
        warmup: train steps before the first cycle.
        hyper_lr: learning rate of λ.
    """
    steps = warmup + cycles * TRAIN_INTERVAL
    tuner = rd.SelfTuner(
        problem.task(seed),
        method,
        preset="paper",
        lr=lr,
        hyper_lr=hyper_lr,
        momentum=0.9,
        batch_size=problem.batch_size,
        epochs=steps,
        steps_per_report=steps,
        train_interval=TRAIN_INTERVAL,
        warmup_steps=warmup,
        clip_grad=1.0,
        tune_scale=False,
        seed=seed,
        device="cpu",
    )
    lams: list[float] = []
    angles: list[float] = []

    def note(*_: Any) -> None:
        lam = tuner.space.lam.detach()
        lams.append(lam.item())
        angles.append(angle(problem, lam[0].double(), linear_map(tuner).detach().double()))

    note()
    assert tuner.optimizers.hyper is not None
    tuner.optimizers.hyper.register_step_post_hook(note)
    tuner.step()
    return lams, angles


def measure(problem: Problem, variant: str, seed: int, curves: bool = True, **options: Any) -> dict[str, Any]:
    """Run one variant on one problem, and return its row.

    Args:
        problem: a ridge problem, with its data.
        variant: one of `VARIANTS`.
        seed: seed of the run.
        curves: whether to keep λ and the angle over the run.
        options: further arguments of `trajectory`.
    """
    started = time.process_time()
    lams, angles = trajectory(problem, VARIANTS[variant], seed, **options)
    seconds = time.process_time() - started
    last = len(lams) - 1
    shown = evenly(last, POINTS)
    row = {
        "problem": "ridge" if problem.divided else "ridge, undivided",
        "data": problem.data.name,
        "variant": variant,
        "seed": seed,
        **options,
        "lambda_initial": lams[0],
        "lambda_final": lams[-1],
        "lambda_optimal": problem.optimum()[0],
        "optimum_at_edge": problem.at_edge(),
        "excursion": excursion(lams, problem.optimum()[0]),
        "angle_initial": angles[0],
        "training_rows": len(problem.data.x),
        "validation_rows": len(problem.data.x_valid),
        "dimension": problem.dimension,
        "batch_size": problem.batch_size,
        "seconds": seconds,
        **versions(),
    }
    if curves:
        row |= {"hyper_steps": shown, "trajectory": [lams[i] for i in shown], "angle": [angles[i] for i in shown]}
    return {key: rounded(value) for key, value in row.items()}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw λ (above) and the angle (below) over hyper steps: one column per data set, one colour per variant.

    Thick lines are medians over the seeds. Thin lines are λ of each seed. Rows without curves are not drawn. The dashed
    line is the median optimum over the splits. It is not drawn if no penalty is best for half of them.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    rows = [row for row in rows if "trajectory" in row]
    sets = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = plt.subplots(
        2, len(sets), figsize=(1.2 + 3.6 * len(sets), 6.2), sharex=True, squeeze=False, layout="constrained"
    )
    for column, name in enumerate(sets):
        above, below = axes[0][column], axes[1][column]
        mine = [row for row in rows if row["data"] == name]
        for variant in VARIANTS:
            colour, width, _ = LOOKS[variant]
            runs = [row for row in mine if row["variant"] == variant]
            if not runs:
                continue
            for axis, key in ((above, "trajectory"), (below, "angle")):
                lines = np.array([row[key] for row in runs], float)
                if key == "trajectory":
                    axis.plot(runs[0]["hyper_steps"], lines.T, color=colour, linewidth=width / 3, alpha=0.35)
                axis.plot(runs[0]["hyper_steps"], np.median(lines, 0), color=colour, linewidth=width, label=variant)
        above.axhline(mine[0]["lambda_initial"], color="black", linestyle=":", linewidth=1, label="initial λ")
        optima = [row["lambda_optimal"] for row in mine if not row["optimum_at_edge"]]
        if 2 * len(optima) > len(mine):
            above.axhline(
                statistics.median(optima), color="black", linestyle="--", linewidth=1, label="optimum (median)"
            )
        one = mine[0]
        above.set_title(
            f"{name}\n{one['training_rows']} rows, {one['dimension']} features, "
            f"initial λ = {one['lambda_initial']:.1f}",
            fontsize=10,
        )
        below.set_ylim(0, 180)
        below.set_yticks([0, 45, 90, 135, 180])
        below.set_xlabel("hyper steps")
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.2)
    axes[0][0].set_ylabel("λ (unconstrained)")
    axes[1][0].set_ylabel("angle of ∇L_T and ∇L_V, degrees")
    found: dict[str, Any] = {}
    for axis in axes[0]:
        found |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found, loc="outside lower center", ncols=len(found), frameon=False)
    seeds = len({row["seed"] for row in rows})
    figure.suptitle(f"{rows[0]['problem']}, lr {rows[0]['lr']:g}, warm-up {rows[0]['warmup']} steps, {seeds} seeds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, standard deviation, median and largest value over the seeds, per setting, data set and variant."""
    keys = (*CASE, "variant")
    entries = []
    for case, mine in record.cases(rows, keys):
        away = [row["excursion"] for row in mine]
        entries.append(
            {
                **dict(zip(keys, case, strict=True)),
                "n": len(mine),
                **record.off(mine),
                "excursion": {**record.figures(away), "largest": None if None in away else max(away)},
                "angle_initial": record.figures(row["angle_initial"] for row in mine),
            }
        )
    return entries


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per setting and data set: median and largest excursion of each variant."""
    text = []
    for case, mine in record.cases(rows, CASE):
        parts = []
        for variant in VARIANTS:
            found = [row["excursion"] for row in mine if row["variant"] == variant]
            if found:
                known = [math.inf if e is None else e for e in found]
                parts.append(f"{variant} {statistics.median(known):5.2f} ({max(known):.2f})")
        start = statistics.median(row["angle_initial"] for row in mine)
        text.append(
            f"{case[0]}, {case[1]}, lr {case[2]:g}, warm-up {case[3]}, initial λ {mine[0]['lambda_initial']:.1f}, "
            f"angle {start:.0f}°: median (largest) excursion  " + "   ".join(parts)
        )
    return text


RECORD = record.Kind(
    "benchmarks.toy_decoupling",
    KEYS,
    ("hyper_steps", "trajectory", "angle"),
    POINTS,
    tuple(versions()),
    summary,
    lines,
    plot,
)


def _settings(text: str) -> list[tuple[float, int]]:
    try:
        pairs = [pair.split(":") for pair in text.split(",")]
        return [(number(above=0)(lr), whole(0)(warmup)) for lr, warmup in pairs]
    except (ValueError, argparse.ArgumentTypeError):
        rule = "must be pairs of a number > 0 and a whole number >= 0, as in 0.001:0,0.03:100"
        raise argparse.ArgumentTypeError(f"{rule}, got {text!r}") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per run and the medians, and write the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--data",
        default="diabetes",
        help="comma-separated: files .npz with X and y, sets in <data root>/uci, or diabetes",
    )
    parser.add_argument("--data-root", type=Path, help="default: the environment variable RAY_DELTASTN_DATA")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"comma-separated, from {', '.join(VARIANTS)}")
    parser.add_argument(
        "--rows-per-dim",
        type=rows_per_dim,
        default="all",
        metavar="K|all",
        help="K training rows per feature and up to 200 validation rows; all: 80 %% and 20 %% of the rows",
    )
    parser.add_argument("--no-divide", action="store_true", help="ridge penalty not divided by n (Figure 8)")
    parser.add_argument("--seeds", type=whole(), default=5)
    parser.add_argument("--cycles", type=whole(), default=200, help="number of hyper steps of a run")
    parser.add_argument(
        "--settings",
        type=_settings,
        default="0.001:0",
        metavar="LR:WARMUP,…",
        help="pairs of a learning rate of w₀ and Θ and a number of warm-up steps; the first pair is drawn",
    )
    RECORD.add_arguments(parser)
    options = parser.parse_args(arguments)
    command = RECORD.command(arguments)
    if options.rows:
        RECORD.redraw(parser, options, command)
        return
    problems = []
    try:
        variants = options.variants.split(",")
        for variant in variants:
            if variant not in VARIANTS:
                raise ValueError(f"`--variants` must be names from {', '.join(VARIANTS)}, got {variant!r}")
        for name in options.data.split(","):
            loaded = load(name, options.data_root)
            for seed in range(options.seeds):
                data = split(*loaded, seed, options.rows_per_dim)
                problems.append((seed, Problem("ridge", data, not options.no_divide)))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json, options.plot)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", rd.RunWarning)
    rows: list[dict[str, Any]] = []
    planned = len(options.settings) * len(problems) * len(variants)
    for place, (lr, warmup) in enumerate(options.settings):
        for seed, problem in problems:
            for variant in variants:
                row = measure(problem, variant, seed, place == 0, cycles=options.cycles, lr=lr, warmup=warmup)
                rows.append(row)
                final, away = (math.nan if row[key] is None else row[key] for key in ("lambda_final", "excursion"))
                print(
                    f"{row['problem']}  {row['data']}  lr {lr:g}  warm-up {warmup}  {variant:13} seed {seed}  "
                    f"λ {row['lambda_initial']:.2f} -> {final:.2f} (optimum {row['lambda_optimal']:.2f})  "
                    f"excursion {away:.2f}  {row['seconds']:.0f} s",
                    flush=True,
                )
                if options.json:
                    RECORD.save(options.json, command, rows, missing=planned - len(rows))
    print("\n".join(lines(rows)))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
