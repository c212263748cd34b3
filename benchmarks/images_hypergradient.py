"""Is the hypergradient noisy, biased or greedy? One run is stopped at a few epochs and looked at from three sides.

    python -m benchmarks.images_hypergradient --set images=10000 --epochs 6,20 --json FILE --plot FILE.png

At the weights, response and hyperparameters of that moment, for each hyperparameter j (λ unconstrained):

- **Noise.** d_j is the hypergradient ∂/∂λ_j E_ε L_V(λ+ε, w₀+Θε) on a validation minibatch, drawn `--draws` times for
  each batch size; `signal_to_noise` is |mean d_j| / std d_j. `learned` is the mean at the largest batch, with its
  standard error.
- **Bias and greed.** `retrained[N]` is what plain training says: from the same weights and momenta, N more steps with
  λ_j raised by `--shift`, and the same with λ_j lowered, all else equal to the last random number, and the difference
  of the two validation losses over twice the shift. A short N is what a response that follows the weights can know; a
  long one is what a user wants. Where the two differ in sign, following the gradient is greedy.

Validation loss here is on the whole validation set, in evaluation mode. Cutout's whole numbers are rounded, so their
differences come in steps.
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


def retrained(
    tuner: rd.SelfTuner, config: dict[str, Any], column: int, shift: float, horizons: Sequence[int]
) -> list[float]:
    """(L_V after N steps with λ_j + shift − L_V after N steps with λ_j − shift) / (2·shift), for each horizon N."""
    losses = []
    for sign in (1, -1):
        lam = tuner.space.lam.detach().clone()
        lam[column] += sign * shift
        values = dict(zip(tuner.space.names, tuner.space.values(lam).tolist(), strict=True))
        plain = tuner_of(
            config, method="fixed", preset="paper", response_fraction=1.0, hyperparameters=values, schedule=None,
            epochs=10_000, steps_per_report=math.gcd(*horizons),
        )  # fmt: skip
        plain.model.load_state_dict(tuner.export())  # for `stn` r(λ), the weights at δ = 0 for the others
        # A copy: an optimiser that loads a state shares its buffers.
        plain.optimizers.weights.load_state_dict(copy.deepcopy(tuner.optimizers.weights.state_dict()))
        reports = {}
        while plain.steps < max(horizons):
            report = plain.step()
            reports[plain.steps] = report["valid_loss"]
        losses.append([reports[n] for n in horizons])
    return [(up - down) / (2 * shift) for up, down in zip(*losses, strict=True)]


def look(
    tuner: rd.SelfTuner,
    config: dict[str, Any],
    batches: Sequence[int],
    draws: int,
    horizons: Sequence[int],
    shift: float,
) -> list[dict[str, Any]]:
    """One row per hyperparameter, at a run's present state."""
    drawn = {batch: hypergradients(tuner, batch, draws) for batch in batches}
    rows = []
    for column, name in enumerate(tuner.space.names):
        largest = drawn[max(batches)][:, column]
        row = {
            "epoch": tuner.epoch,
            "hyperparameter": name,
            "value": tuner.hyperparameters()[name],
            "signal_to_noise": {
                str(batch): abs(d[:, column].mean().item()) / d[:, column].std().item() for batch, d in drawn.items()
            },
            "learned": largest.mean().item(),
            "learned_error": largest.std().item() / math.sqrt(draws),
            "retrained": dict(
                zip(map(str, horizons), retrained(tuner, config, column, shift, horizons), strict=True)
            ),
        }  # fmt: skip
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    noise = "  ".join(f"{batch}: {value:.2f}" for batch, value in row["signal_to_noise"].items())
    retrain = "  ".join(f"{n}: {value:+.5f}" for n, value in row["retrained"].items())
    return (
        f"epoch {row['epoch']:3}  {row['hyperparameter']:14} {row['value']:.4g}  signal/noise {noise}   learned "
        f"{row['learned']:+.5f} ± {row['learned_error']:.5f}   re-trained {retrain}"
    )


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw signal to noise (above) and the gradient, learned and re-trained (below), a column per epoch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    epochs = list(dict.fromkeys(row["epoch"] for row in rows))
    figure, axes = plt.subplots(2, len(epochs), figsize=(1 + 5 * len(epochs), 7), squeeze=False, layout="constrained")
    for above, below, epoch in zip(*axes, epochs, strict=True):
        mine = [row for row in rows if row["epoch"] == epoch]
        place = np.arange(len(mine))
        batches, horizons = list(mine[0]["signal_to_noise"]), list(mine[0]["retrained"])
        for i, batch in enumerate(batches):
            values = [row["signal_to_noise"][batch] for row in mine]
            above.bar(place + 0.8 * (i / len(batches) - 0.4), values, 0.8 / len(batches), color=f"C{i}", label=batch)
        bars = [("learned", "black", [row["learned"] for row in mine])]
        bars += [
            (f"re-trained, {n} steps", plt.get_cmap("viridis")(0.2 + 0.7 * i / len(horizons)),
             [row["retrained"][n] for row in mine])
            for i, n in enumerate(horizons)
        ]  # fmt: skip
        for i, (label, colour, values) in enumerate(bars):
            below.bar(place + 0.8 * (i / len(bars) - 0.4), values, 0.8 / len(bars), color=colour, label=label)
        above.set_title(f"after epoch {epoch}")
        for axis in (above, below):
            axis.set_xticks(place, [row["hyperparameter"] for row in mine], rotation=30, ha="right")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.2, axis="y")
        below.axhline(0, color="black", linewidth=0.6)
    axes[0][0].set_ylabel("signal to noise of one hyper step")
    axes[1][0].set_ylabel("dL_V/dλ: below zero, more is better")
    axes[0][0].legend(title="minibatch", frameon=False)
    axes[1][0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def agreement(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For each horizon, in how many rows the learned gradient has the sign of re-training."""
    lines = []
    for n in rows[0]["retrained"]:
        same = [row["learned"] * row["retrained"][n] > 0 for row in rows if row["retrained"][n] != 0]
        share = f"{sum(same)} of {len(same)}" if same else "none"
        lines.append(f"re-trained for {n} steps: same sign as learned in {share}")
    noise = [row["signal_to_noise"][batch] for row in rows for batch in list(row["signal_to_noise"])[:1]]
    return [*lines, f"median signal to noise at the smallest batch: {statistics.median(noise):.2f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, stop at each epoch asked for, and look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", default="fashion-cnn", help=f"{', '.join(PAPER)}, or 'module:function'")
    parser.add_argument("--method", default="delta-stn")
    parser.add_argument("--epochs", type=several(whole()), default=[6, 20], help="where to stop and look")
    parser.add_argument("--batches", type=several(whole()), default=[128, 512, 1500], help="sizes of the hyper batch")
    parser.add_argument("--draws", type=whole(2), default=50)
    parser.add_argument("--horizons", type=several(whole()), default=[10, 60, 300], help="train steps of re-training")
    parser.add_argument("--shift", type=number(above=0), default=1.0, help="change of λ in re-training")
    parser.add_argument("--seed", type=whole(0), default=0)
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
        last = max(options.epochs)
        config = configuration(options.task, options.method, last, options.seed, dict(options.changes))
        tuner = tuner_of(config)
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json, options.plot)
    shown = {k: v for k, v in config.items() if k != "data_root"}
    head = {"config": shown, "shift": options.shift, "draws": options.draws, "hardware": hardware(tuner.device)}
    rows: list[dict[str, Any]] = []
    while not tuner.done:
        tuner.step()
        print(f"epoch {tuner.epoch}  validation loss {tuner.last_report['valid_loss']:.4f}", flush=True)
        if tuner.epoch in options.epochs:
            rows += look(tuner, config, options.batches, options.draws, options.horizons, options.shift)
            if options.json:
                record.write(options.json, record.rounded({**head, **versions(), "rows": rows}))
    if not rows:
        sys.exit(f"the run must reach an epoch of `--epochs`, got: {tuner.stop_reason}")
    print("\n".join(agreement(rows)))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
