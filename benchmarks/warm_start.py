"""Warm starts: do trials that start with learned hyperparameters reach a target earlier? Paired by seed.

    python -m benchmarks.warm_start --task digits-mlp --seeds 5 --json FILE

For every seed there are two trials. The cold trial starts with the initial hyperparameters of the task. The warm trial
starts with the final hyperparameters of the cold trial of the *next* seed, and is the same otherwise. They are set with
the key `warm_start` of a trial's config, as `tune.warm_start` does it. The target is the best validation loss of the
cold trial.

- `cold_epochs`: first epoch at which the cold trial reached the target;
- `warm_epochs`: the same for the warm trial; null if it never reached the target;
- `other_epochs`: the same for the cold trial of the next seed, which shows the effect of another seed alone.

`difference` is warm − cold, with its 95 % interval from Student's t. Epochs are compared over the pairs in which the
warm trial reached the target; `reached` is their number. Losses are compared over all pairs. The record contains every
curve.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray_deltastn as rd
from benchmarks.common.arguments import prepare, whole
from benchmarks.common.machine import versions
from benchmarks.common.record import cases, command_line, rounded, spread, write
from benchmarks.images import change, configuration
from ray_deltastn.compare.differences import half_width
from ray_deltastn.tune.search.warm_start import KEY, learned

#: task → (epochs, settings), as in `configs/digits_hybrid.yaml` and in the short runs of `benchmarks.images`.
TASKS: dict[str, tuple[int, dict[str, Any]]] = {
    "digits-mlp": (40, {"batch_size": 64, "lr": 0.1, "momentum": 0.5, "warmup": 3, "hyper_lr": 0.05}),
    "fashion-cnn": (8, {"images": 10_000, "preset": "recommended"}),
}

#: Paired differences in the summary → their names in the printed text.
DIFFERENCES = {
    "difference": "warm − cold, epochs",
    "difference_other": "another seed − cold, epochs",
    "difference_best": "warm − cold, best validation loss",
    "difference_test": "warm − cold, test loss at the best epoch",
}


def train(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Train a trial without a cluster, and return all its reports."""
    trial = rd.DeltaSTNTrainable(config)
    reports = [trial.train()]
    while not reports[-1]["done"]:
        reports.append(trial.train())
    trial.stop()
    return reports


def reached(losses: Sequence[float | None], target: float) -> int | None:
    """First epoch, counted from 1, with a loss at or below the target; None if there is none."""
    return next((i for i, loss in enumerate(losses, 1) if loss is not None and loss <= target), None)


def lowest(losses: Sequence[float | None]) -> float:
    """The lowest loss; infinite if every epoch diverged."""
    return min((loss for loss in losses if loss is not None), default=math.inf)


def outcome(row: Mapping[str, Any]) -> dict[str, Any]:
    """Results of a pair of trials; the row contains the curves of `cold`, `warm` and `other`."""
    target = lowest(row["cold"])
    found: dict[str, Any] = {f"{name}_epochs": reached(row[name], target) for name in ("cold", "warm", "other")}
    for name in ("cold", "warm"):
        best = found[f"{name}_best"] = lowest(row[name])
        found[f"{name}_test"] = row[f"{name}_test"][row[name].index(best)] if best in row[name] else math.inf
    return found


def apart(pairs: Sequence[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Second minus first over the pairs that have both: number, mean, deviation and half width of the interval."""
    known = [second - first for first, second in pairs if first is not None and second is not None]
    if not known:
        return {"n": 0, "mean": None, "std": None, "half_width": None}
    return {"n": len(known), **spread(known), "half_width": rounded(half_width(known))}


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per task."""
    entries = []
    for (task, epochs), pairs in cases(rows, ("task", "epochs")):
        found = [outcome(row) for row in pairs]
        entry: dict[str, Any] = {"task": task, "epochs": epochs, "n": len(found)}
        for name in ("cold", "warm", "other"):
            known = [one[f"{name}_epochs"] for one in found if one[f"{name}_epochs"] is not None]
            entry[f"{name}_epochs"] = {"reached": len(known), **(spread(known) if known else {})}
        entry["difference"] = apart([(one["cold_epochs"], one["warm_epochs"]) for one in found])
        entry["difference_other"] = apart([(one["cold_epochs"], one["other_epochs"]) for one in found])
        for what in ("best", "test"):
            for name in ("cold", "warm"):
                entry[f"{name}_{what}"] = spread([one[f"{name}_{what}"] for one in found])
            entry[f"difference_{what}"] = apart([(one[f"cold_{what}"], one[f"warm_{what}"]) for one in found])
        entries.append(entry)
    return entries


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The summary as text."""
    found = []
    for entry in summary(rows):
        n, epochs = entry["n"], entry["epochs"]
        found.append(
            f"{entry['task']}, {n} seeds, {epochs} epochs; epochs until the cold trial's best validation loss:"
        )
        for name, what in (("cold", "cold"), ("warm", "warm"), ("other", "cold, another seed")):
            about = entry[f"{name}_epochs"]
            mean = "–" if "mean" not in about else plus_minus(about["mean"], about["std"], ".1f")
            found.append(f"  {what:21}  {mean}, reached in {about['reached']} of {n}")
        for key, what in DIFFERENCES.items():
            about = entry[key]
            digits = "+.4f" if "loss" in what else "+.1f"
            mean = "–" if about["mean"] is None else plus_minus(about["mean"], about["half_width"], digits)
            found.append(f"  {what}: {mean} (95 %, {about['n']} pairs)")
    return found


def plus_minus(mean: float, deviation: float | None, digits: str) -> str:
    """`mean ± deviation`, or only the mean if there is no deviation."""
    return format(mean, digits) + ("" if deviation is None else f" ± {format(deviation, digits.lstrip('+'))}")


def save(path: Path, command: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the record."""
    write(path, {"command": command, "versions": versions(), "summary": summary(rows), "rows": list(rows)})


def measure(task: str, epochs: int, settings: Mapping[str, Any], seeds: int) -> list[dict[str, Any]]:
    """One row per seed: first all cold trials, then each warm trial with the learned values of the next seed."""

    def trial(seed: int, start: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        config = configuration(task, "delta-stn", epochs, seed, settings)
        reports = train({**config, KEY: start} if start else config)
        name = "warm" if start else "cold"
        best = min(report["valid_loss"] for report in reports)
        print(f"{task}  seed {seed}  {name}  best validation loss {best:.4f}", flush=True)
        return reports

    def curve(reports: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
        found: list[Any] = rounded([report.get(key) for report in reports])
        return found

    cold = [trial(seed) for seed in range(seeds)]
    rows = []
    for seed, reports in enumerate(cold):
        source = (seed + 1) % seeds
        start = learned(cold[source][-1])
        if start is None:
            raise RuntimeError(
                f"the cold trial of seed {source} must end with finite hyperparameters, got values that are not finite"
            )
        warm = trial(seed, start)
        row: dict[str, Any] = {"task": task, "epochs": epochs, "settings": dict(settings), "seed": seed}
        row |= {"from_seed": source, "start": rounded(start)}
        for name, found in (("cold", reports), ("warm", warm), ("other", cold[source])):
            row[name] = curve(found, "valid_loss")
        rows.append({**row, "cold_test": curve(reports, "test_loss"), "warm_test": curve(warm, "test_loss")})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the pairs of every task, print their results, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", default=",".join(TASKS), help="comma-separated (default: all)")
    parser.add_argument("--seeds", type=whole(2), default=5)
    usual = ", ".join(f"{task} {epochs}" for task, (epochs, _) in TASKS.items())
    parser.add_argument("--epochs", type=whole(), help=f"number of epochs (default: {usual})")
    parser.add_argument("--set", type=change, action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args(arguments)
    tasks = options.task.split(",")
    for task in tasks:
        if task not in TASKS:
            parser.error(f"`--task` must be names from {', '.join(TASKS)}, got {task!r}")
    prepare(parser, options.json)
    warnings.simplefilter("ignore", rd.RunWarning)
    command = command_line("benchmarks.warm_start", arguments)
    rows: list[dict[str, Any]] = []
    for task in tasks:
        epochs, settings = TASKS[task]
        rows += measure(task, options.epochs or epochs, {**settings, **dict(options.changes)}, options.seeds)
        if options.json:
            save(options.json, command, rows)
    print("\n".join(lines(rows)))


if __name__ == "__main__":
    main()
