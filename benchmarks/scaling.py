"""Scaling: real trials on one and two CPUs, and the overhead of Tune with up to 256 simulated trials.

    python -m benchmarks.scaling --trials 8,32,128,256 --json FILE

**Real**: `run_experiment` runs k identical trials on digits on k workers with one CPU each. `seconds` is the time from
the first step of any trial to the last report. `efficiency` is the time of one trial alone, divided by the time of k
trials at once. Each k runs `--repeats` times, in turn, and the fastest repetition counts, because other processes may
use the machine.

**Simulated**: trials that only sleep, with a report after each nap, on `--workers` simulated CPUs. As in
`run_experiment`, actors are reused, and the loggers are the same. The search is random, and there are no checkpoints.

- `ideal`: time of the measured naps if no worker ever waited. `seconds`: time from the first nap to the end of the last
  nap. `start`: time from the command to the first nap, in which the processes start.
- `report_ms`: mean wait of a worker between two naps of a trial. `trial_ms`: mean wait between two trials.
- `processes`: number of processes that ran a trial. A free process takes a trial for which another process is still
  starting, and Tune cancels that start. If processes start slowly and trials are short, few processes run all trials.
- `overhead`: total waiting time of these processes, divided by the total time of the naps. The cost of late and missing
  processes is visible in `seconds` only.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray import tune

from benchmarks.common.arguments import number, prepare, several, whole
from benchmarks.common.machine import versions
from benchmarks.common.record import command_line, rounded, write
from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.experiment import run_experiment
from ray_deltastn.tune.folder.loggers import loggers
from ray_deltastn.tune.folder.report_log import ReportLog

CONFIG = Path("configs/digits_hybrid.yaml")
#: Number of naps, and so of reports, of a simulated trial.
NAPS = 4


class Sleeper(tune.Trainable):
    """A trial that sleeps, and reports when each nap began and ended."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start a trial (called by Tune)."""
        self.naps = 0

    def step(self) -> dict[str, Any]:
        """Sleep once (called by Tune)."""
        began = time.time()
        time.sleep(self.config["nap"])
        self.naps += 1
        return {"began": began, "ended": time.time(), "loss": 0.0, "done": self.naps == self.config["naps"]}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in the same process (called by Tune)."""
        self.setup(new_config)
        return True


def begin(cpus: int) -> None:
    """Start a cluster on this machine that declares `cpus` CPUs; they need not exist."""
    ray.shutdown()
    ray.init(
        "local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
    )


def real(trials: int, epochs: int, folder: Path) -> float:
    """Seconds from the first step of any of the trials to the last report."""
    sizes = [f"tune.num_samples={trials}", f"tune.max_concurrent={trials}", f"train.epochs={epochs}"]
    config = ExperimentConfig.read(CONFIG, ["search={}", "tune.searcher=random", *sizes])
    reports = run_experiment(config, folder)
    return float(reports["timestamp"].max() - (reports["timestamp"] - reports["time_this_iter_s"]).min())


def efficiencies(seconds: dict[int, list[float]]) -> list[dict[str, Any]]:
    """Rows of the real trials, from number of trials → seconds of each repetition."""
    alone = min(seconds[1])
    return [
        {"trials": trials, "workers": trials, "seconds": min(taken), "every": taken, "efficiency": alone / min(taken)}
        for trials, taken in seconds.items()
    ]


def simulated(trials: int, workers: int, nap: float, folder: Path) -> dict[str, Any]:
    """Run simulated trials on a cluster that has been started with `workers` CPUs, and return the row."""
    started = time.time()
    analysis = tune.run(
        Sleeper,
        name="trials",
        storage_path=str(folder),
        config={"nap": nap, "naps": NAPS},
        num_samples=trials,
        max_concurrent_trials=workers,
        reuse_actors=True,
        callbacks=[ReportLog(folder), *loggers()],
        verbose=0,
    )
    naps = pd.concat(analysis.trial_dataframes.values())
    return {"start": float(naps["began"].min() - started), **waiting(naps, trials, workers)}


def waiting(naps: pd.DataFrame, trials: int, workers: int) -> dict[str, Any]:
    """Waiting times of the workers, from the begin, the end, the trial and the process of each nap."""
    ordered = naps.sort_values("began")
    after = ordered.groupby("pid")
    gaps = ordered["began"] - after["ended"].shift()
    same = ordered["trial_id"] == after["trial_id"].shift()
    slept = float((naps["ended"] - naps["began"]).sum())
    row = {"trials": trials, "workers": workers, "processes": after.ngroups, "trial_seconds": slept / trials}
    row |= {"ideal": math.ceil(trials / workers) * slept / trials}
    row |= {"seconds": float(naps["ended"].max() - naps["began"].min())}
    row |= {"report_ms": 1000 * float(gaps[same].mean()), "trial_ms": 1000 * float(gaps[~same].mean())}
    return {**row, "overhead": float(gaps.sum()) / slept}


def lines(record: dict[str, Any]) -> list[str]:
    """Both tables, as text."""
    found = ["real trials  workers  seconds  efficiency"]
    for row in record["real"]:
        found.append(f"{row['trials']:11}  {row['workers']:7}  {row['seconds']:7.1f}  {row['efficiency']:9.0%}")
    found.append("simulated trials  workers  processes    ideal  seconds  start  ms per report  ms per trial  overhead")
    for row in record["simulated"]:
        trial = "–" if row["trial_ms"] is None else f"{row['trial_ms']:.0f}"
        who = f"{row['trials']:16}  {row['workers']:7}  {row['processes']:9}"
        times = f"{row['ideal']:7.1f}  {row['seconds']:7.1f}  {row['start']:5.1f}  {row['report_ms']:13.1f}"
        found.append(f"{who}  {times}  {trial:>12}  {row['overhead']:8.2%}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run real and simulated trials, print both tables, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--trials",
        type=several(whole()),
        default=[8, 32, 128, 256],
        metavar="N,N,...",
        help="numbers of simulated trials",
    )
    parser.add_argument(
        "--workers", type=whole(), default=8, help="simulated CPUs for these trials; each process needs 0.2 GB"
    )
    parser.add_argument(
        "--nap", type=number(above=0), default=0.5, help=f"seconds of a nap; a simulated trial has {NAPS} naps"
    )
    parser.add_argument("--epochs", type=whole(), default=60, help="epochs of a real trial")
    parser.add_argument("--repeats", type=whole(), default=2, help="repetitions of the real trials")
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args(arguments)
    prepare(parser, options.json)
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "OMP_NUM_THREADS": "1"}.items():
        os.environ.setdefault(name, value)
    record: dict[str, Any] = {"command": command_line("benchmarks.scaling", arguments), "versions": versions()}
    record |= {"cpus": os.cpu_count(), "load": {"before": os.getloadavg()[0]}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        begin(2)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for repeat in range(options.repeats):
            for trials, taken in seconds.items():
                taken.append(real(trials, options.epochs, folder / f"real-{trials}-{repeat}"))
        record["real"] = rounded(efficiencies(seconds), 4)
        record["load"]["between"] = os.getloadavg()[0]
        begin(options.workers)
        rows = [simulated(n, options.workers, options.nap, folder / f"simulated-{n}") for n in options.trials]
        record["simulated"] = rounded(rows, 4)
        record["load"]["after"] = os.getloadavg()[0]
        ray.shutdown()
    print("\n".join(lines(record)))
    if options.json:
        write(options.json, record)


if __name__ == "__main__":
    main()
