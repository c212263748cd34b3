"""Noise, bias and greediness of the learned hypergradient, measured at a few epochs of a run.

    python -m benchmarks.images_hypergradient --set images=10000 --epochs 6,20 --seeds 3 --json FILE --plot FILE.png

The command stops the run after these epochs. At the current weights, response and hyperparameters it measures, for each
hyperparameter j (λ unconstrained):

- **Noise.** d_j is the hypergradient ∂/∂λ_j E_ε L_V(λ+ε, w₀+Θε) on a validation minibatch. It is drawn `--draws` times
  for each batch size. `signal_to_noise` is |mean d_j| / std d_j. `learned` is the mean at the largest batch size, with
  its standard error. `steady` is the mean over `--moments` later moments, 50 train steps apart with λ fixed, with the
  standard error over these moments. It shows the noise of w₀ and Θ, which a larger hyper batch does not reduce.
- **Bias.** `implicit[N]` is the hypergradient by implicit differentiation at the same weights, for N steps
  (`benchmarks.common.local_response`), with its standard error over `--repeats` draws of images and masks.
  `averaged[N]` is the same at the mean of the weights over `--average` further steps of plain training. The noise of
  SGD moves the weights in the same directions as λ does, and a single moment does not separate the two.
- **Greediness.** `retrained[N]` comes from plain training. Two trainings start from the same weights and momenta and
  run N more steps with the same random numbers, one with λ_j raised by `--shift`, one with λ_j lowered by it. The
  difference of the validation losses is divided by twice the shift. The mean and the standard error are over `--pairs`
  such pairs with different random numbers. A response that follows the weights can predict a short N. A user wants the
  result for a long N. If the two have different signs, following the gradient is greedy.

Two signs are compared only if the 95 % intervals of both numbers (Student's t) exclude zero. The validation loss is on
the whole validation set, in evaluation mode. `--shift` is the step in λ of both differences. The number of Cutout holes
and their length are rounded, so their differences change in steps.

`--noise-only` skips bias and greediness, which take most of the time.
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
from scipy import stats
from torch import Tensor

import ray_deltastn as rd
from benchmarks.common import record
from benchmarks.common.arguments import number, prepare, several, whole
from benchmarks.common.hypergradients import (
    averaged,
    check,
    hypergradients,
    local,
    plain_copy,
    retrained,
    steady,
    tuner_of,
)
from benchmarks.common.machine import hardware, versions
from benchmarks.images import PAPER, change, configuration
from ray_deltastn.methods import get_method

#: Estimates that the learned hypergradient is compared with.
KINDS = ("implicit", "averaged", "retrained")


def estimate(values: Sequence[float]) -> dict[str, float | None]:
    """Number, mean and standard error of values. Both are None if a value is not finite; one value has no error."""
    found: dict[str, float | None] = {"n": len(values), "mean": None, "error": None}
    if all(map(math.isfinite, values)):
        spread = record.spread(values)
        error = None if spread["std"] is None else spread["std"] / math.sqrt(len(values))
        found |= {"mean": spread["mean"], "error": error}
    return found


def interval(found: dict[str, float | None]) -> float:
    """Half the width of the mean's 95 % interval, from Student's t; infinite if there is no standard error."""
    if found["error"] is None:
        return math.inf
    return float(stats.t.ppf(0.975, (found["n"] or 0) - 1) * found["error"])


def signal_to_noise(values: Tensor) -> float:
    """|mean| / standard deviation; zero if the mean is zero."""
    return abs(values.mean().item()) / max(values.std().item(), torch.finfo(values.dtype).tiny)


def look(tuner: rd.SelfTuner, config: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per hyperparameter, at the current state of a run; `options` are the options of the command."""
    o, lam = options, tuner.space.lam.detach()
    drawn = {batch: hypergradients(tuner, batch, o.draws) for batch in o.batches}
    moments = list(zip(*steady(tuner, config, max(o.batches), o.moments), strict=True))
    implicit = {}
    if o.horizons:
        plain = {"implicit": plain_copy(tuner, config, lam), "averaged": averaged(tuner, config, o.average)}
        implicit = {kind: local(run, lam, o.horizons, o.shift, o.images, o.repeats) for kind, run in plain.items()}
    rows = []
    for column, name in enumerate(tuner.space.names):
        seeds = range(o.pairs if o.horizons else 0)
        pairs = [retrained(tuner, config, column, o.shift, o.horizons, seed) for seed in seeds]
        row = {
            "seed": config["seed"],
            "epoch": tuner.epoch,
            "hyperparameter": name,
            "value": tuner.hyperparameters()[name],
            "signal_to_noise": {str(batch): signal_to_noise(d[:, column]) for batch, d in drawn.items()},
            "learned": estimate(drawn[max(o.batches)][:, column].tolist()),
            "steady": estimate(moments[column]),
            **{kind: by_horizon(o.horizons, found[column]) for kind, found in implicit.items()},
            "retrained": by_horizon(o.horizons, pairs),
        }
        rows.append(row)
        print(line(row), flush=True)
    return rows


def by_horizon(horizons: Sequence[int], repeats: Sequence[Sequence[float]]) -> dict[str, dict[str, float | None]]:
    """For each horizon, the mean and the standard error over the repeats."""
    return {str(n): estimate(values) for n, values in zip(horizons, zip(*repeats, strict=True), strict=True)}


def line(row: dict[str, Any]) -> str:
    """A row as text."""

    def text(found: dict[str, float | None]) -> str:
        if found["mean"] is None:
            return "diverged"
        return f"{found['mean']:+.5f}" + ("" if found["error"] is None else f" ± {found['error']:.5f}")

    noise = "  ".join(f"{batch}: {value:.2f}" for batch, value in row["signal_to_noise"].items())
    kinds = [
        f"{kind} " + "  ".join(f"{n}: {text(found)}" for n, found in row[kind].items())
        for kind in KINDS
        if row.get(kind)
    ]
    return (
        f"seed {row['seed']}  epoch {row['epoch']:3}  {row['hyperparameter']:14} {row['value']:.4g}  signal/noise "
        f"{noise}   learned {text(row['learned'])}   steady {text(row['steady'])}   {'   '.join(kinds)}"
    )


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw signal to noise (above) and the gradients (below): one column per epoch, one mark per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    epochs = list(dict.fromkeys(row["epoch"] for row in rows))
    names = list(dict.fromkeys(row["hyperparameter"] for row in rows))
    batches, horizons = list(rows[0]["signal_to_noise"]), list(rows[0]["retrained"])
    shade = plt.get_cmap("viridis")(np.linspace(0.15, 0.8, len(horizons)))
    marks = [("learned", "learned", None, "black", "s"), ("learned, over time", "steady", None, "red", "s")]
    marks += [
        (f"{kind}, {n} steps", kind, n, shade[i], mark)
        for kind, mark in zip(KINDS, "od^", strict=True)
        for i, n in enumerate(horizons)
    ]
    size = (1 + max(5.0, 1.1 * len(names)) * len(epochs), 8)
    figure, axes = plt.subplots(2, len(epochs), figsize=size, squeeze=False, layout="constrained", sharey="row")
    for above, below, epoch in zip(*axes, epochs, strict=True):
        mine = [row for row in rows if row["epoch"] == epoch]
        place = np.array([names.index(row["hyperparameter"]) for row in mine])
        for i, batch in enumerate(batches):
            values = [row["signal_to_noise"][batch] for row in mine]
            above.plot(place + 0.5 * (i + 0.5) / len(batches) - 0.25, values, "o", color=f"C{i}", ms=5, label=batch)
        for i, (label, kind, horizon, colour, mark) in enumerate(marks):
            found = [_found(row, kind, horizon) for row in mine]
            means = [math.nan if f["mean"] is None else f["mean"] for f in found]
            bars = [0.0 if f["error"] is None else interval(f) for f in found]
            at = place + 0.8 * (i + 0.5) / len(marks) - 0.4
            inside = "none" if kind in KINDS[:2] else colour
            below.errorbar(at, means, bars, fmt=mark, color=colour, mfc=inside, ms=5, elinewidth=1, label=label)
        above.set_title(f"after epoch {epoch}")
        above.set_yscale("log")
        below.set_yscale("symlog", linthresh=1e-3)
        below.tick_params(axis="y", labelsize=8)
        for axis in (above, below):
            axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.2, axis="y")
        below.axhline(0, color="black", linewidth=0.6)
    axes[0][0].set_ylabel("signal to noise of one hyper step")
    axes[1][0].set_ylabel("dL_V/dλ and its 95 % interval\nbelow zero, more is better")
    axes[0][0].legend(title="minibatch", frameon=False)
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4 if len(epochs) > 1 else 3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def sign(found: dict[str, float | None]) -> int:
    """Sign of the mean, −1 or 1, if its 95 % interval excludes zero; otherwise 0."""
    mean = found["mean"]
    if mean is None or abs(mean) <= interval(found):
        return 0
    return 1 if mean > 0 else -1


def _found(row: dict[str, Any], kind: str, horizon: str | None) -> dict[str, float | None]:
    found: dict[str, Any] = row[kind]
    return found if horizon is None else found[horizon]


def _name(kind: str, horizon: str | None) -> str:
    return kind if horizon is None else f"{kind} {horizon} steps"


def agreement(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines that say in how many cases two gradients have the same sign, among the cases with clear signs."""
    horizons = list(rows[0]["retrained"])
    asked = [("learned", None, "steady", None)]
    asked += [(learned, None, kind, n) for learned in ("learned", "steady") for kind in KINDS for n in horizons]
    asked += [(kind, n, "retrained", n) for kind in KINDS[:2] for n in horizons]
    if len(horizons) > 1:
        asked += [("retrained", horizons[0], "retrained", horizons[-1])]
    lines = []
    for first, second in (((a, n), (b, m)) for a, n, b, m in asked):
        both = [(sign(_found(row, *first)), sign(_found(row, *second))) for row in rows]
        clear = [a == b for a, b in both if a and b]
        lines.append(f"{_name(*first)} and {_name(*second)}: same sign in {sum(clear)} of {len(clear)} clear cases")
    for batch in rows[0]["signal_to_noise"]:
        middle = statistics.median(row["signal_to_noise"][batch] for row in rows)
        lines.append(f"median signal to noise on minibatches of {batch}: {middle:.2f}")
    moments = [row["steady"] for row in rows]
    known = [abs(m["mean"]) / (m["error"] * math.sqrt(m["n"])) for m in moments if m["mean"] is not None and m["error"]]
    lines += [f"median signal to noise over time: {statistics.median(known):.2f}"] if known else []
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, stop after each of the given epochs, and measure there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", default="fashion-cnn", help=f"{', '.join(PAPER)}, or 'module:function'")
    parser.add_argument("--method", default="delta-stn")
    parser.add_argument("--epochs", type=several(whole()), default=[6, 20], help="epochs after which to measure")
    parser.add_argument("--batches", type=several(whole()), default=[128, 512, 1500], help="sizes of the hyper batch")
    parser.add_argument("--draws", type=whole(2), default=50)
    parser.add_argument("--horizons", type=several(whole()), default=[20, 100], help="numbers of train steps ahead")
    parser.add_argument("--noise-only", action="store_true", help="skip implicit differentiation and re-training")
    parser.add_argument("--moments", type=whole(2), default=8, help="later moments in `steady`")
    parser.add_argument("--average", type=whole(), default=300, help="train steps in the mean of `averaged`")
    parser.add_argument("--pairs", type=whole(), default=4, help="pairs of re-trainings for each hyperparameter")
    parser.add_argument(
        "--repeats", type=whole(2), default=4, help="draws of images and masks in `implicit` and `averaged`"
    )
    parser.add_argument("--images", type=whole(), default=500, help="training images in each of these draws")
    parser.add_argument("--shift", type=number(above=0), default=1.0, help="step in λ of the differences")
    parser.add_argument("--seeds", type=whole(), default=1, help="number of runs, with the seeds 0, 1, …")
    parser.add_argument("--set", type=change, action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--threads", type=whole(), default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    if options.noise_only:
        options.horizons = []
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", rd.RunWarning)
    try:
        if not get_method(options.method).responds:
            raise ValueError(f"`--method` must learn a response, got {options.method!r}")
        configs = [
            configuration(options.task, options.method, max(options.epochs), seed, dict(options.changes))
            for seed in range(options.seeds)
        ]
        tuner = tuner_of(configs[0])
        check(tuner)
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json, options.plot)
    shown = {k: v for k, v in configs[0].items() if k not in ("data_root", "seed")}
    of_plain = () if options.noise_only else ("shift", "pairs", "average", "repeats", "images")
    asked = {key: getattr(options, key) for key in ("draws", "moments", *of_plain)}
    head = {
        "command": record.command_line("benchmarks.images_hypergradient", arguments),
        "config": shown,
        **asked,
        "hardware": hardware(tuner.device),
        **versions(),
    }
    rows: list[dict[str, Any]] = []
    for config in configs:
        tuner = tuner if config is configs[0] else tuner_of(config)
        while not tuner.done:
            tuner.step()
            print(f"seed {config['seed']}  epoch {tuner.epoch}  {tuner.last_report['valid_loss']:.4f}", flush=True)
            if tuner.epoch in options.epochs:
                rows += look(tuner, config, options)
                if options.json:
                    record.write(options.json, record.rounded({**head, "summary": agreement(rows), "rows": rows}))
    if not rows:
        sys.exit(
            f"a run must reach an epoch of `--epochs`, got none; the last run stopped because: {tuner.stop_reason}"
        )
    print("\n".join(agreement(rows)))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
