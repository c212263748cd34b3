"""Accuracy of the learned response Jacobian dv*/dλ for each method, at four perturbation scales (similar to Figure 2).

    python -m benchmarks.toy_response --problem ridge,network --json FILE --plot FILE.png

λ keeps its initial value, because the warm-up is as long as the run. So the exact solution does not change, while
`SelfTuner` trains w₀ and Θ. Both problems have L_T(λ, v) = 1/(2n)·‖Xv − t‖² + ½·Σ_j g_j v_j² in the linear map v of the
network:

| problem   | network                                    | g_j                 |
|-----------|--------------------------------------------|---------------------|
| `ridge`   | one layer (H.1)                            | e^λ/n, h = 1        |
| `network` | five hidden layers, Jacobian norm (H.4)    | e^(λ_j), h = d      |

In `network` each feature has a separate penalty, so the hypergradient is a vector with a direction. With C = XᵀX/n,
c = Xᵀt/n, A = C + diag(g) and G_jm = ∂ log g_j/∂λ_m, the exact solution is v* = A⁻¹c, dv*/dλ = −A⁻¹ diag(g ⊙ v*) G.

A finite σ causes a bias, because e^(λ+ε) is not linear. With M = e^(σ²/2), E[g(λ+ε)·ε] = g M σ² and
E[g(λ+ε)·ε²] = g M (σ² + σ⁴), where ε belongs to the same entry. The best linear response (3.10) of the linearised
problem is then, for each column, J_m = −(C + M diag(g ⊙ (1 + σ² G_m)))⁻¹ (M g ⊙ G_m ⊙ v₀) with v₀ = v*. `stn` trains
v₀ on the same perturbed loss, where (C + M diag g) v₀ + M σ² Σ_m g ⊙ G_m ⊙ J_m = c. Dotted lines show the error of
these best responses: for all methods on `ridge`, and for Δ-STN on `network`, where the problem is nonlinear for the
other methods.

Δ-STN predicts with the linearised network, whose ∂y/∂x is v₀ + dv. So its penalty computes dv by the product rule, as
in `benchmarks.toy`. `delta-stn-dense` penalises the product of the displaced layers w₀ + Θε instead, for comparison.

The settings are those of `benchmarks.toy` (momentum 0.9, gradients clipped at 1, lr 0.03, all rows, 80 % and 20 %),
with three exceptions: lr decays to 0 (cosine), minibatches have 100 rows, and g is 1 (toy: 1/n). There are two reasons.
The noise of the minibatches does not decrease with σ² as the signal does; together with directions that X hardly
determines, it would hide the learned response. And for some splits a smaller g is so close to the optimum that the
exact hypergradient is too small for a comparison.

Curves, at evenly spaced points of log(train steps):

- `jacobian_error`, `jacobian_cosine`: ‖J − dv*/dλ‖/‖dv*/dλ‖, and the cosine of J and dv*/dλ. J is the derivative of
  v(w₀ + Θδ) at the current weights of the network (for `stn` of v(r(λ))).
- `hypergradient_cosine`, `hypergradient_ratio`: q is the gradient of the hyper step at ε = 0 on all validation rows,
  and d = dL_V(v*(λ))/dλ is exact. The first is the cosine of q and d. The second is ⟨q, d⟩/⟨d, d⟩, and should be
  1.

The record's `summary` has statistics over the seeds at the last point. `--rows FILE.json` draws and summarises a record
again, as in `benchmarks.toy`.
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
from benchmarks.common.toy_jacobian import KINDS, STRENGTH, Exact, learned_hypergradient, learned_jacobian
from ray_deltastn.methods import MethodName

#: Name of a line in the picture → method.
LINES: dict[str, MethodName] = {
    "stn": "stn",
    "centered-stn": "centered-stn",
    "delta-stn": "delta-stn",
    "delta-stn-dense": "delta-stn",
}
CURVES = ("jacobian_error", "jacobian_cosine", "hypergradient_cosine", "hypergradient_ratio")
POINTS, BATCH = 30, 100
#: Keys that are equal in rows that differ only in their seed.
CASE = ("problem", "data", "sigma", "method")
#: Keys that the rows of a record need to be drawn again.
KEYS = (*CASE, "seed", "limit_error", "training_rows", "steps", *CURVES)


def measure(exact: Exact, line: str, sigma: float, seed: int, *, steps: int = 2000, lr: float = 0.03) -> dict[str, Any]:
    """Run one method at one σ, and return its row.

    Args:
        exact: the problem, with its data.
        line: one of `LINES`.
        sigma: scale of the perturbation.
        seed: seed of initial weights, order of examples and perturbations.
        steps: number of train steps, rounded up to whole epochs.
        lr: learning rate of w₀ and Θ at the start.
    """
    method = LINES[line]
    epochs = math.ceil(steps / math.ceil(len(exact.data.x) / BATCH))
    tuner = rd.SelfTuner(
        exact.task(seed, sigma, line == "delta-stn"),
        method,
        preset="paper",
        lr=lr,
        momentum=0.9,
        batch_size=BATCH,
        epochs=epochs,
        steps_per_report=2 * steps,
        warmup_steps=2 * steps,
        clip_grad=1.0,
        tune_scale=False,
        schedule="cosine",
        seed=seed,
        device="cpu",
    )
    last = tuner.total_steps
    points = {round(10 * (last / 10) ** (i / (POINTS - 1))) for i in range(POINTS)} if last > 10 else {last}
    jacobian, gradient = exact.response_jacobian(exact.lam), exact.hypergradient(exact.lam)
    done = 0
    curves: dict[str, list[float]] = {"steps": []}

    def note(*_: Any) -> None:
        nonlocal done
        done += 1
        if done not in points:
            return
        found, q = learned_jacobian(tuner).double(), learned_hypergradient(tuner, exact.data).double()
        curves["steps"].append(done)
        values = (
            (found - jacobian).norm() / jacobian.norm(),
            (found * jacobian).sum() / (found.norm() * jacobian.norm()),
            q @ gradient / (q.norm() * gradient.norm()),
            q @ gradient / gradient.square().sum(),
        )
        for key, value in zip(CURVES, values, strict=True):
            curves.setdefault(key, []).append(value.item())

    assert tuner.optimizers.response is not None
    tuner.optimizers.response.register_step_post_hook(note)
    started = time.process_time()
    tuner.step()
    row: dict[str, Any] = {
        "problem": exact.kind,
        "data": exact.data.name,
        "method": line,
        "sigma": sigma,
        "seed": seed,
        "lr": lr,
        "schedule": "cosine",
        "momentum": 0.9,
        "clip_grad": 1.0,
        "batch_size": BATCH,
        "strength": STRENGTH,
        "training_rows": len(exact.data.x),
        "validation_rows": len(exact.data.x_valid),
        "dimension": exact.problem.dimension,
        "limit_error": None,
    }
    if exact.kind == "ridge" or line == "delta-stn":
        _, limit = exact.limit(exact.lam, sigma, joint=line == "stn")
        row["limit_error"] = ((limit - jacobian).norm() / jacobian.norm()).item()
    row |= {**curves, "seconds": time.process_time() - started, **versions()}
    return {key: rounded(value) for key, value in row.items()}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the error of the Jacobian and the hypergradient of each problem: one column per σ, one colour per method.

    Thin lines are the seeds. Thick lines are their mean, or their median for the ratio. Dotted lines are the error of
    the best linear response.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.lines import Line2D

    kinds, sigmas = (list(dict.fromkeys(row[key] for row in rows)) for key in ("problem", "sigma"))
    figure, axes = plt.subplots(
        2 * len(kinds),
        len(sigmas),
        figsize=(1.4 + 3 * len(sigmas), 0.9 + 4.6 * len(kinds)),
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for pair, kind in enumerate(kinds):
        scalar = kind == "ridge"
        for column, sigma in enumerate(sigmas):
            above, below = axes[2 * pair][column], axes[2 * pair + 1][column]
            for line in LINES:
                colour, width, style = LOOKS[line]
                mine = [row for row in rows if (row["problem"], row["sigma"], row["method"]) == (kind, sigma, line)]
                if not mine:
                    continue
                steps = mine[0]["steps"]
                second = "hypergradient_ratio" if scalar else "hypergradient_cosine"
                for axis, key in ((above, "jacobian_error"), (below, second)):
                    curves = np.array([row[key] for row in mine], float)
                    middle = np.median(curves, 0) if key == "hypergradient_ratio" else curves.mean(0)
                    axis.plot(steps, curves.T, color=colour, linewidth=width / 4, alpha=0.35, linestyle=style)
                    axis.plot(steps, middle, color=colour, linewidth=width, linestyle=style, label=line)
                if mine[0]["limit_error"] is not None and line != "centered-stn":
                    limit = statistics.fmean(row["limit_error"] for row in mine)
                    above.axhline(limit, color=colour, linestyle=":", linewidth=1.6)
            above.set_title(f"{kind}, σ = {sigma:g}", fontsize=10)
            above.set_yscale("log")
            above.set_ylim(0.02, 3)
            below.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
            below.set_ylim((-2, 4) if scalar else (-1.05, 1.05))
            for axis in (above, below):
                axis.set_xscale("log")
                axis.spines[["top", "right"]].set_visible(False)
                axis.grid(alpha=0.2)
        axes[2 * pair][0].set_ylabel("error of dv/dλ,\nrelative")
        axes[2 * pair + 1][0].set_ylabel("hypergradient,\n" + ("learned / exact" if scalar else "cosine with exact"))
    for axis in axes[-1]:
        axis.set_xlabel("train steps")
    found: dict[str, Any] = {}
    for axis in axes[:, 0]:
        found |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    found["limit in closed form"] = Line2D([], [], color="black", linestyle=":", linewidth=1.6)
    figure.legend(found.values(), found, loc="outside lower center", ncols=len(found), frameon=False)
    figure.suptitle(
        f"{rows[0]['data']}, {rows[0]['training_rows']} rows, {len({r['seed'] for r in rows})} seeds, λ fixed"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, standard deviation and median over the seeds at the end of the runs, per problem, σ and method."""
    entries = []
    for case, mine in record.cases(rows, CASE):
        limits = [row["limit_error"] for row in mine if row["limit_error"] is not None]
        entries.append(
            {
                **dict(zip(CASE, case, strict=True)),
                "n": len(mine),
                "limit_error": record.figures(limits),
                **{key: record.figures(row[key][-1] for row in mine) for key in CURVES},
            }
        )
    return entries


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Medians over the seeds at the end of the runs as text: one line per problem, σ and method."""
    text = []
    for (problem, _, sigma, line), mine in record.cases(rows, CASE):
        error, cosine, direction, ratio = (
            statistics.median(math.nan if row[key][-1] is None else row[key][-1] for row in mine) for key in CURVES
        )
        limits = [row["limit_error"] for row in mine if row["limit_error"] is not None]
        text.append(
            f"{problem:8} σ {sigma:<4g} {line:16} Jacobian error {error:.3f}"
            + (f" (limit {statistics.median(limits):.3f})" if limits else " " * 14)
            + f"  cosine {cosine:5.2f}   hypergradient cosine {direction:5.2f}  ratio {ratio:5.2f}"
        )
    return text


RECORD = record.Kind(
    "benchmarks.toy_response", KEYS, ("steps", *CURVES), POINTS, tuple(versions()), summary, lines, plot
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per run and the medians, and write the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--problem", default=",".join(KINDS), help=f"comma-separated, from {', '.join(KINDS)}")
    parser.add_argument(
        "--data", default="diabetes", help="a file .npz with X and y, a set in <data root>/uci, or diabetes"
    )
    parser.add_argument("--data-root", type=Path, help="default: the environment variable RAY_DELTASTN_DATA")
    parser.add_argument(
        "--methods", default=",".join(LINES), help="comma-separated; delta-stn-dense runs on network only"
    )
    parser.add_argument("--sigmas", type=several(number(above=0)), default="0.1,0.5,1,2", help="perturbation scales")
    parser.add_argument("--seeds", type=whole(), default=3)
    parser.add_argument("--steps", type=whole(), default=2000, help="number of train steps")
    parser.add_argument("--lr", type=number(above=0), default=0.03, help="learning rate of w₀ and Θ at the start")
    RECORD.add_arguments(parser)
    options = parser.parse_args(arguments)
    command = RECORD.command(arguments)
    if options.rows:
        RECORD.redraw(parser, options, command)
        return
    cases = []
    try:
        loaded = load(options.data, options.data_root)
        for kind in options.problem.split(","):
            for line in options.methods.split(","):
                if line not in LINES:
                    raise ValueError(f"`--methods` must be names from {', '.join(LINES)}, got {line!r}")
                if kind == "network" or line != "delta-stn-dense":
                    cases += [
                        (Exact(kind, split(*loaded, seed)), line, sigma, seed)
                        for sigma in options.sigmas
                        for seed in range(options.seeds)
                    ]
        if not cases:
            raise ValueError("`--problem` must include network for 'delta-stn-dense', got ridge only")
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json, options.plot)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", rd.RunWarning)
    rows: list[dict[str, Any]] = []
    for exact, line, sigma, seed in cases:
        row = measure(exact, line, sigma, seed, steps=options.steps, lr=options.lr)
        rows.append(row)
        print(f"seed {seed}  {lines([row])[0]}  {row['seconds']:.0f} s", flush=True)
        if options.json:
            RECORD.save(options.json, command, rows, missing=len(cases) - len(rows))
    print("\n".join(lines(rows)))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
