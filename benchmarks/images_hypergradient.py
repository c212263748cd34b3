"""Is the hypergradient noisy, biased or greedy? Runs are stopped at a few epochs and looked at from three sides.

    python -m benchmarks.images_hypergradient --set images=10000 --epochs 6,20 --seeds 3 --json FILE --plot FILE.png

At the weights, response and hyperparameters of that moment, for each hyperparameter j (λ unconstrained):

- **Noise.** d_j is the hypergradient ∂/∂λ_j E_ε L_V(λ+ε, w₀+Θε) on a validation minibatch, drawn `--draws` times for
  each batch size; `signal_to_noise` is |mean d_j| / std d_j. `learned` is the mean at the largest batch, with its
  standard error.
- **Bias.** `implicit[N]` is what implicit differentiation says at the same weights, for N steps
  (`benchmarks.local_response`), with its standard error over `--repeats` draws of the masks.
- **Greed.** `retrained[N]` is what plain training says: from the same weights and momenta, N more steps with λ_j raised
  by `--shift`, and the same with λ_j lowered, all else equal to the last random number, and the difference of the two
  validation losses over twice the shift; mean and standard error over `--pairs` such pairs, which differ in their
  random numbers. A short N is what a response that follows the weights can know; a long one is what a user wants. Where
  the two differ in sign, following the gradient is greedy.

Signs are compared where both numbers are more than twice their standard error away from zero. Validation loss here is
on the whole validation set, in evaluation mode. Cutout's whole numbers are rounded, so their differences come in steps.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ray_deltastn as rd
from benchmarks import record
from benchmarks.arguments import number, prepare, several, whole
from benchmarks.images import PAPER, change, configuration
from benchmarks.local_response import LocalModel
from benchmarks.speed import hardware, versions
from ray_deltastn.methods import get_method
from ray_deltastn.settings import Settings
from ray_deltastn.tasks import build_task


def tuner_of(config: dict[str, Any], **changes: Any) -> rd.SelfTuner:
    """A run of a configuration, with other settings where given."""
    torch.manual_seed(config["seed"])
    options = {name: config[name] for name in Settings.names() if name in config}
    task = build_task(config)
    task.test = None  # never looked at here, and evaluation would cost more than the steps
    return rd.SelfTuner(task, **{**options, **changes})


def hypergradients(tuner: rd.SelfTuner, batch: int, draws: int, seed: int = 0) -> Tensor:
    """Hypergradients (draws, h) on validation minibatches drawn with replacement, perturbed afresh each time."""
    space, objective = tuner.space, tuner.objective
    x, y = (torch.cat(parts) for parts in zip(*tuner.valid.in_order(), strict=True))
    generator = torch.Generator(space.lam.device).manual_seed(seed)
    found = []
    tuner.model.eval()
    for _ in range(draws):
        rows = torch.randint(len(x), (batch,), generator=generator, device=generator.device)
        with torch.no_grad():
            eps = space.sample(batch, generator)
        loss = objective.hyper_loss(x[rows], y[rows], eps, 0.0)
        found.append(torch.autograd.grad(loss, space.lam)[0])
    tuner.model.train()
    return torch.stack(found)


def plain_copy(tuner: rd.SelfTuner, config: dict[str, Any], lam: Tensor, **changes: Any) -> rd.SelfTuner:
    """Plain training from a run's weights and momenta, with the hyperparameters held at λ."""
    values = dict(zip(tuner.space.names, tuner.space.values(lam).tolist(), strict=True))
    plain = tuner_of(
        config, method="fixed", preset="paper", response_fraction=1.0, hyperparameters=values, schedule=None,
        epochs=10_000, **changes,
    )  # fmt: skip
    plain.model.load_state_dict(tuner.export())  # for `stn` r(λ), the weights at δ = 0 for the others
    # A copy: an optimiser that loads a state shares its buffers.
    plain.optimizers.weights.load_state_dict(copy.deepcopy(tuner.optimizers.weights.state_dict()))
    return plain


def retrained(
    tuner: rd.SelfTuner, config: dict[str, Any], column: int, shift: float, horizons: Sequence[int], seed: int = 0
) -> list[float]:
    """(L_V after N steps with λ_j + shift − L_V after N steps with λ_j − shift) / (2·shift), for each horizon N."""
    losses = []
    for sign in (1, -1):
        lam = tuner.space.lam.detach().clone()
        lam[column] += sign * shift
        plain = plain_copy(tuner, config, lam, seed=seed, steps_per_report=math.gcd(*horizons))
        reports = {}
        while plain.steps < max(horizons):
            report = plain.step()
            reports[plain.steps] = report["valid_loss"]
        losses.append([reports[n] for n in horizons])
    return [(up - down) / (2 * shift) for up, down in zip(*losses, strict=True)]


def estimate(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and its standard error; none of a single value."""
    found = record.spread(values)
    error = None if found["std"] is None else found["std"] / math.sqrt(len(values))
    return {"mean": found["mean"], "error": error}


def look(tuner: rd.SelfTuner, config: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per hyperparameter, at a run's present state; `options` are the command's."""
    drawn = {batch: hypergradients(tuner, batch, options.draws) for batch in options.batches}
    lam, group = tuner.space.lam.detach(), tuner.optimizers.weights.param_groups[0]
    near = LocalModel(plain_copy(tuner, config, lam), lam, options.images)
    implicit = near.hypergradients(
        group["lr"], tuner.settings.momentum, options.horizons, options.shift, options.repeats
    ).tolist()
    rows = []
    for column, name in enumerate(tuner.space.names):
        largest = drawn[max(options.batches)][:, column]
        pairs = [
            retrained(tuner, config, column, options.shift, options.horizons, seed) for seed in range(options.pairs)
        ]
        row = {
            "seed": config["seed"],
            "epoch": tuner.epoch,
            "hyperparameter": name,
            "value": tuner.hyperparameters()[name],
            "signal_to_noise": {
                str(batch): abs(d[:, column].mean().item()) / d[:, column].std().item() for batch, d in drawn.items()
            },
            "learned": estimate(largest.tolist()),
            "implicit": by_horizon(options.horizons, implicit[column]),
            "retrained": by_horizon(options.horizons, pairs),
        }  # fmt: skip
        rows.append(row)
        print(line(row), flush=True)
    return rows


def by_horizon(horizons: Sequence[int], repeats: Sequence[Sequence[float]]) -> dict[str, dict[str, float | None]]:
    """Mean and standard error over repeats, for each horizon."""
    return {str(n): estimate(values) for n, values in zip(horizons, zip(*repeats, strict=True), strict=True)}


def line(row: dict[str, Any]) -> str:
    """A row as text."""

    def text(found: dict[str, float | None]) -> str:
        return f"{found['mean']:+.5f}" + ("" if found["error"] is None else f" ± {found['error']:.5f}")

    noise = "  ".join(f"{batch}: {value:.2f}" for batch, value in row["signal_to_noise"].items())
    kinds = [
        f"{kind} " + "  ".join(f"{n}: {text(found)}" for n, found in row[kind].items())
        for kind in ("implicit", "retrained")
    ]
    return (
        f"seed {row['seed']}  epoch {row['epoch']:3}  {row['hyperparameter']:14} {row['value']:.4g}  signal/noise "
        f"{noise}   learned {text(row['learned'])}   {'   '.join(kinds)}"
    )


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw signal to noise (above) and the gradients (below), a column per epoch and a mark per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    epochs = list(dict.fromkeys(row["epoch"] for row in rows))
    names = list(dict.fromkeys(row["hyperparameter"] for row in rows))
    batches, horizons = list(rows[0]["signal_to_noise"]), list(rows[0]["retrained"])
    shade = plt.get_cmap("viridis")(np.linspace(0.15, 0.8, len(horizons)))
    marks = [("learned", "learned", None, "black", "s")]
    marks += [(f"implicit, {n} steps", "implicit", n, shade[i], "o") for i, n in enumerate(horizons)]
    marks += [(f"re-trained, {n} steps", "retrained", n, shade[i], "^") for i, n in enumerate(horizons)]
    size = (1 + max(5.0, 1.1 * len(names)) * len(epochs), 8)
    figure, axes = plt.subplots(2, len(epochs), figsize=size, squeeze=False, layout="constrained", sharey="row")
    for above, below, epoch in zip(*axes, epochs, strict=True):
        mine = [row for row in rows if row["epoch"] == epoch]
        place = np.array([names.index(row["hyperparameter"]) for row in mine])
        for i, batch in enumerate(batches):
            values = [row["signal_to_noise"][batch] for row in mine]
            above.plot(place + 0.5 * (i + 0.5) / len(batches) - 0.25, values, "o", color=f"C{i}", ms=5, label=batch)
        for i, (label, kind, horizon, colour, mark) in enumerate(marks):
            found = [row[kind] if horizon is None else row[kind][horizon] for row in mine]
            below.errorbar(
                place + 0.8 * (i + 0.5) / len(marks) - 0.4, [f["mean"] for f in found],
                [2 * (f["error"] or 0) for f in found], fmt=mark, color=colour, ms=5, elinewidth=1, label=label,
                mfc="none" if kind == "implicit" else colour,
            )  # fmt: skip
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
    axes[1][0].set_ylabel("dL_V/dλ ± 2 standard errors\nbelow zero, more is better")
    axes[0][0].legend(title="minibatch", frameon=False)
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3 * len(epochs)), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def sign(found: dict[str, float | None]) -> int:
    """−1 or 1 where the mean is more than two standard errors away from zero, else 0; without an error, 0."""
    mean, error = found["mean"], found["error"]
    if mean is None or error is None or abs(mean) <= 2 * error:
        return 0
    return 1 if mean > 0 else -1


def agreement(rows: Sequence[dict[str, Any]]) -> list[str]:
    """In how many of the cases where both signs are beyond their error two of the gradients agree."""
    horizons = list(rows[0]["retrained"])
    asked = [("learned", None, kind, n) for kind in ("implicit", "retrained") for n in horizons]
    asked += [("implicit", n, "retrained", n) for n in horizons]
    if len(horizons) > 1:
        asked += [("retrained", horizons[0], "retrained", horizons[-1])]
    lines = []
    for kind, n, other, m in asked:
        both = [
            (sign(row[kind] if n is None else row[kind][n]), sign(row[other][m]))
            for row in rows
        ]  # fmt: skip
        clear = [a == b for a, b in both if a and b]
        who = kind if n is None else f"{kind} {n} steps"
        lines.append(f"{who} and {other} {m} steps: same sign in {sum(clear)} of {len(clear)} clear cases")
    for batch in rows[0]["signal_to_noise"]:
        middle = statistics.median(row["signal_to_noise"][batch] for row in rows)
        lines.append(f"median signal to noise on minibatches of {batch}: {middle:.2f}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, stop at each epoch asked for, and look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", default="fashion-cnn", help=f"{', '.join(PAPER)}, or 'module:function'")
    parser.add_argument("--method", default="delta-stn")
    parser.add_argument("--epochs", type=several(whole()), default=[6, 20], help="where to stop and look")
    parser.add_argument("--batches", type=several(whole()), default=[128, 512, 1500], help="sizes of the hyper batch")
    parser.add_argument("--draws", type=whole(2), default=50)
    parser.add_argument("--horizons", type=several(whole()), default=[20, 100], help="train steps looked ahead")
    parser.add_argument("--pairs", type=whole(), default=4, help="re-trainings of each hyperparameter")
    parser.add_argument("--repeats", type=whole(2), default=4, help="draws of the masks in `implicit`")
    parser.add_argument("--images", type=whole(), default=500, help="training images of the Hessian")
    parser.add_argument("--shift", type=number(above=0), default=1.0, help="change of λ in re-training")
    parser.add_argument("--seeds", type=whole(), default=1, help="runs, with the seeds 0, 1, …")
    parser.add_argument("--set", type=change, action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--threads", type=whole(), default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
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
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json, options.plot)
    shown = {k: v for k, v in configs[0].items() if k not in ("data_root", "seed")}
    asked = {key: getattr(options, key) for key in ("shift", "draws", "pairs", "repeats", "images")}
    head = {"command": record.command_line("benchmarks.images_hypergradient", arguments), "config": shown, **asked,
            "hardware": hardware(tuner.device), **versions()}  # fmt: skip
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
        sys.exit(f"the runs must reach an epoch of `--epochs`, got: {tuner.stop_reason}")
    print("\n".join(agreement(rows)))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
