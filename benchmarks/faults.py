"""Fault tolerance: kill the driver, trial processes and nodes of an experiment repeatedly, and check its results.

    python -m benchmarks.faults --kills 20 --json benchmarks/records/faults.json

The command runs `configs/digits_hybrid.yaml` with `ray-deltastn run` on a cluster of three nodes on this machine, with
one CPU each. At random moments it sends SIGKILL in turn to the driver (then it resumes with `--resume`), to the process
of a trial, and to a whole node (a new node replaces it). At the end it counts:

- `finished`: trials that ended as planned, or diverged;
- `complete`: trials whose results contain every report exactly once;
- `restarted`: how often a trial started again from zero although it had a checkpoint; it must be 0;
- `told_once`: whether the searcher has each trial's result exactly once;
- `replayed`: trials that end with bit-identical numbers when they are trained again alone, without kills;
- `strays`: folders of trials that a killed driver had started and the resumed driver does not know. They are left out
  of the results.

The command exits with status 1 if one of the first five counts is wrong, or if the experiment ended before all kills
were made.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.common.arguments import number, prepare, whole
from benchmarks.common.machine import versions
from benchmarks.common.record import command_line, write
from ray_deltastn.training.columns import SCALES, VALUES
from ray_deltastn.tune.folder.log import read_log

KINDS = ("driver", "worker", "node")
NODES = 3
MEMORY = 100 * 2**20
#: A run counts as stuck after this many seconds without a new report.
STUCK = 300.0


class Cluster:
    """Three nodes with one CPU each on this machine. The first one is the head node and is never killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self.cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": MEMORY})
        self.others = [self._add() for _ in range(NODES - 1)]
        self.cluster.wait_for_nodes()

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY)

    @property
    def address(self) -> str:
        """Address of the cluster."""
        return str(self.cluster.address)

    def kill_node(self) -> None:
        """Kill one node, and add a new one."""
        self.cluster.remove_node(self.others.pop(0), allow_graceful=False)
        self.others.append(self._add())

    def stop(self) -> None:
        """End all nodes."""
        self.cluster.shutdown()


class Driver:
    """The command that runs the experiment. After a kill it is started again with `--resume`."""

    def __init__(self, config: Path, out: Path, address: str, changes: Sequence[str]) -> None:
        self.out = out
        sets = [word for change in changes for word in ("--set", change)]
        self.line = [sys.executable, "-m", "ray_deltastn", "run", str(config), "--out", str(out), *sets]
        self.line += ["--address", address]
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start the experiment, or resume it if it has a saved state."""
        self.starts += 1
        more = ["--resume"] if self._begun() else []
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # it stays open while the process runs
        self.process = subprocess.Popen(self.line + more, stdout=self.log, stderr=subprocess.STDOUT)

    def _begun(self) -> bool:
        return any((self.out / "trials").glob("experiment_state-*.json"))

    def kill(self) -> None:
        """Kill the command only; the processes that it has started keep running."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if not self._begun():  # there is nothing to resume, so start again, as a user would
            for path in self.out.glob("*.json"):
                path.unlink()

    @property
    def running(self) -> bool:
        """Whether the command is still running."""
        return self.process.poll() is None

    def said(self) -> str:
        """Output of the command so far."""
        self.log.seek(0)
        return self.log.read()


def reports(out: Path) -> dict[str, list[dict[str, Any]]]:
    """All reports of each trial in order of arrival, including repeated ones."""
    return {trial: [report.result for report in mine] for trial, mine in read_log(out).items()}


def kill_a_worker(out: Path) -> bool:
    """Kill the process of a running trial; False if there is none."""
    pids = {rows[-1]["pid"] for rows in reports(out).values() if rows and not rows[-1]["done"]}
    for pid in random.sample(sorted(pids), len(pids)):
        try:
            if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():  # a process of an earlier driver may have ended
                os.kill(pid, signal.SIGKILL)
                return True
        except OSError:
            continue
    return False


def disturb(driver: Driver, cluster: Cluster, kills: int, low: float, high: float) -> list[str]:
    """Kill processes in turn, at random moments, until the experiment ends; return the kinds that were killed."""
    killed: list[str] = []
    known, since = 0, time.monotonic()
    wait_until = time.monotonic() + high
    while driver.running:
        time.sleep(0.2)
        now = sum(map(len, reports(driver.out).values())) if driver.out.exists() else 0
        if now != known:
            known, since = now, time.monotonic()
        if time.monotonic() - since > STUCK:
            raise RuntimeError(f"there was no report for {STUCK:.0f} s; the command printed:\n{driver.said()}")
        if len(killed) >= kills or time.monotonic() < wait_until or now == 0:
            continue
        kind = KINDS[len(killed) % len(KINDS)]
        if kind == "driver":
            driver.kill()
            driver.start()
        elif kind == "node":
            cluster.kill_node()
        elif not kill_a_worker(driver.out):
            continue
        killed.append(kind)
        print(f"kill {len(killed)} of {kills}: {kind}; {now} reports so far", flush=True)
        wait_until = time.monotonic() + random.uniform(low, high)
    if driver.process.returncode != 0:
        raise RuntimeError(f"the command exited with status {driver.process.returncode} and printed:\n{driver.said()}")
    return killed


def replay(config: dict[str, Any], last: dict[str, Any]) -> list[str]:
    """Names of the numbers in a trial's last report that differ when the trial is trained again alone."""
    import torch

    from ray_deltastn import DeltaSTNTrainable

    torch.set_num_threads(1)
    trial = DeltaSTNTrainable(config)
    report = trial.train()
    while not report["done"]:
        report = trial.train()
    trial.stop()
    kept = ("loss", "accuracy", "epoch", "steps")
    names = [n for n in report if n in VALUES or n in SCALES or any(part in n for part in kept)]
    return [name for name in names if not _same(report[name], last.get(name))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def check(out: Path, planned: int, every: int) -> dict[str, Any]:
    """Results of all checks, read from the files of the experiment."""
    results = pd.read_csv(out / "results.csv", dtype={"trial_id": str})
    trials = sorted(results["trial_id"].unique())
    written = reports(out)
    last = {trial: written[trial][-1] for trial in trials}
    restarted = 0
    for trial in trials:
        furthest = 0
        for row in written[trial]:
            # After a checkpoint and a report, a trial must not start at 1 again.
            restarted += row["training_iteration"] == 1 and furthest > every
            furthest = max(furthest, row["training_iteration"])
    state = json.loads(max((out / "trials").glob("searcher-state-*.json")).read_text())
    told = [trial for trial, *_ in state["finished"]]
    configs = {trial: mine[-1].config for trial, mine in read_log(out).items()}
    different = {trial: replay(configs[trial], last[trial]) for trial in trials}
    return {
        "planned": planned,
        "trials": len(trials),
        "finished": sum(bool(row["done"]) for row in last.values()),
        "restarted": restarted,
        "told_once": sorted(told) == trials,
        "replayed": sum(not names for names in different.values()),
        "different": {trial: names for trial, names in different.items() if names},
        "complete": sum(_complete(rows["training_iteration"]) for _, rows in results.groupby("trial_id")),
        "strays": len(set(written) - set(trials)),
        "repeated_reports": sum(len(written[t]) for t in trials) - len(results),
    }


def _complete(iterations: pd.Series) -> bool:
    """Whether the results contain every report of a trial exactly once."""
    return sorted(iterations) == list(range(1, len(iterations) + 1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment with kills, resume it, check it, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=whole(), default=20)
    parser.add_argument("--config", type=Path, default=Path("configs/digits_hybrid.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--every", type=whole(), default=1, help="reports between checkpoints")
    parser.add_argument(
        "--between",
        type=number(above=0),
        nargs=2,
        default=(3.0, 15.0),
        metavar=("LOW", "HIGH"),
        help="seconds between kills",
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the moments of the kills")
    parser.add_argument("--out", type=Path, help="results folder (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    prepare(parser, options.json)
    random.seed(options.seed)
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}.items():
        os.environ.setdefault(name, value)
    changes = [*options.changes, "tune.max_failures=-1", f"tune.checkpoint_every={options.every}"]
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)) / "experiment"
        cluster = Cluster()
        started = time.monotonic()
        try:
            driver = Driver(options.config, out, cluster.address, changes)
            killed = disturb(driver, cluster, options.kills, *options.between)
            seconds = time.monotonic() - started
        finally:
            cluster.stop()
        planned = json.loads((out / "config.json").read_text())["tune"]["num_samples"]
        found = check(out, planned, options.every)
    counts = {kind: killed.count(kind) for kind in KINDS}
    row = {"killed": counts, "driver_starts": driver.starts, "seconds": round(seconds), **found}
    record = {
        "command": command_line("benchmarks.faults", arguments),
        "seed": options.seed,
        "versions": versions(),
        "rows": [row],
    }
    print(json.dumps(row, indent=2))
    whole_and_equal = row["trials"] == row["finished"] == row["replayed"] == row["complete"] == planned
    good = whole_and_equal and row["told_once"] and not row["restarted"]
    if len(killed) < options.kills:
        print(f"`--kills {options.kills}` must fit into this experiment, got {len(killed)}: lower `--between`")
    if not good or len(killed) < options.kills:
        sys.exit(1)
    if options.json:
        write(options.json, record)


if __name__ == "__main__":
    main()
