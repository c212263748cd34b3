"""Overhead of Tune in a trial: the share of its time that reports, checkpoints and round trips to the driver take.

    python -m benchmarks.overhead --minutes 1 --epochs-per-report 1,2,5 --json FILE

The command runs one trial on digits for each number of epochs between reports. A trial takes `--minutes`. It runs as in
`ray-deltastn run configs/digits_hybrid.yaml`, with its loggers and with a checkpoint every ten reports. All times are
measured inside the trial:

- `train`: train and hyper steps. `evaluate`: validation and test losses. These two are not overhead.
- `report`: the rest of the trial's `step`.
- `checkpoint`: saving the state.
- `round_trip`: the rest of the time between two calls of `step`. Tune stores the checkpoint, takes the report, calls
  the scheduler and the searcher, logs, and calls `step` again.
- `own_share`: `report` and `checkpoint`, divided by the total time. `share`: the same with `round_trip` added.

Two times are not counted: the start of the trial's process, which is before the first step, and the last checkpoint,
which is after the last report.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import ray_deltastn as rd
from benchmarks.common.arguments import number, prepare, several, whole
from benchmarks.common.machine import versions
from benchmarks.common.record import command_line, rounded, write
from ray_deltastn.tasks import build_task
from ray_deltastn.training.columns import SECONDS
from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.experiment import run_experiment

CONFIG = Path("configs/digits_hybrid.yaml")
#: The largest overhead that the design allows.
MOST = 0.02
#: Number of epochs used to measure the time of one epoch.
TRIED = 20


def parts(reports: pd.DataFrame) -> dict[str, Any]:
    """Parts of a trial's time in seconds, read from its reports, and the shares that are overhead."""
    last = reports.sort_values("training_iteration").iloc[-1]
    found = {
        "train": last[SECONDS("train")] + last[SECONDS("hyper")],
        "evaluate": last[SECONDS("evaluate")],
        "report": last["time_total_s"] - last[SECONDS("total")],
        "checkpoint": last[SECONDS("checkpoint")],
        "round_trip": last[SECONDS("between")] - last[SECONDS("checkpoint")],
    }
    whole_time = last["time_total_s"] + last[SECONDS("between")]
    own = found["report"] + found["checkpoint"]
    shares = {"own_share": float(own / whole_time), "share": float((own + found["round_trip"]) / whole_time)}
    between = reports[SECONDS("between")].diff().median()
    row = {"reports": len(reports), "seconds": whole_time, "seconds_per_report": whole_time / len(reports), **found}
    return {**row, "median_between": float(between), **shares}


def seconds_per_epoch(config: ExperimentConfig) -> tuple[float, int]:
    """Seconds of one epoch on this machine, measured now, and the number of train steps in it."""
    options = {**config.train, "epochs": TRIED, "warmup": 0}
    tuner = rd.SelfTuner(build_task({"task": config.task, **config.options}), **options)
    for report in tuner.fit():
        taken = report[SECONDS("total")]
    return taken / TRIED, len(tuner.train)


def measure(minutes: float, epochs_per_report: int, folder: Path) -> dict[str, Any]:
    """Run one trial of about this many minutes, and return its row."""
    plain = ["search={}", "tune.searcher=random", "tune.num_samples=1"]
    seconds, steps = seconds_per_epoch(ExperimentConfig.read(CONFIG, plain))
    reports = max(2, round(60 * minutes / seconds / epochs_per_report))
    sizes = [f"train.epochs={reports * epochs_per_report}", f"train.steps_per_report={steps * epochs_per_report}"]
    config = ExperimentConfig.read(CONFIG, [*plain, *sizes])
    found = run_experiment(config, folder / f"every-{epochs_per_report}")
    row = {"epochs_per_report": epochs_per_report, "checkpoint_every": config.tune.checkpoint_every}
    load, _, _ = os.getloadavg()
    thinned: dict[str, Any] = rounded({**row, **parts(found), "load": load}, 4)
    return thinned


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    own = "  ".join(f"{name} {row[name]:.2f} s" for name in ("train", "evaluate", "report", "checkpoint", "round_trip"))
    shares = {"reports and checkpoints": row["own_share"], "with round trips": row["share"]}
    found = "; ".join(
        f"{name} {100 * share:.2f} %, {'within' if share <= MOST else 'above'} {100 * MOST:.0f} %"
        for name, share in shares.items()
    )
    return (
        f"{row['epochs_per_report']} epochs per report, {row['reports']} reports in {row['seconds']:.0f} s: {own}; "
        f"{found}; "
        f"{1000 * row['median_between']:.1f} ms between steps (median)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trials, print the parts of their time, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=number(above=0), default=1.0, help="approximate length of a trial")
    parser.add_argument("--epochs-per-report", type=several(whole()), default=[1, 2, 5], metavar="N,N,...")
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args(arguments)
    prepare(parser, options.json)
    for name in ("RAY_USAGE_STATS_ENABLED", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "0" if name.startswith("RAY") else "1")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for epochs in options.epochs_per_report:
            rows.append(measure(options.minutes, epochs, Path(folder)))
            print(line(rows[-1]), flush=True)
    if options.json:
        command = command_line("benchmarks.overhead", arguments)
        write(options.json, {"command": command, "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
