"""Nothing is lost: an experiment whose driver, workers and machines are killed again and again, checked at the end.

    python -m benchmarks.faults --kills 20 --json benchmarks/records/faults.json

runs `configs/digits_hybrid.yaml` through the command line on a cluster of three nodes on this machine (a CPU each), and
kills, with SIGKILL at random moments, in turn the driver (then `--resume`), the process of a trial, and a whole node
(another takes its place). At the end:

- `finished`: every planned trial has ended as planned, or diverged;
- `complete`: trials of which the results hold every report, once;
- `restarted`: trials that began again from zero although they had a checkpoint; 0 is right;
- `told_once`: the searcher knows each trial's result exactly once;
- `replayed`: each trial, trained again alone and undisturbed, ends with the same numbers to the bit;
- `strays`: folders of trials that a killed driver had begun and its successor does not know; they are left out of the
  results.

The command ends with status 1 if one of these does not hold, or the experiment ended before all kills were made.
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
#: Seconds without any new report after which a run counts as stuck.
STUCK = 300.0


class Cluster:
    """Three nodes of one CPU on this machine; the first one holds the cluster together and is never killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self.cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": MEMORY})
        self.others = [self._add() for _ in range(NODES - 1)]
        self.cluster.wait_for_nodes()

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY)

    @property
    def address(self) -> str:
        """Where a command finds the cluster."""
        return str(self.cluster.address)

    def kill_node(self) -> None:
        """One node dies, another joins."""
        self.cluster.remove_node(self.others.pop(0), allow_graceful=False)
        self.others.append(self._add())

    def stop(self) -> None:
        """End all nodes."""
        self.cluster.shutdown()


class Driver:
    """The command that runs the experiment, started again with `--resume` after it was killed."""

    def __init__(self, config: Path, out: Path, address: str, changes: Sequence[str]) -> None:
        self.out = out
        sets = [word for change in changes for word in ("--set", change)]
        self.line = [sys.executable, "-m", "ray_deltastn", "run", str(config), "--out", str(out), *sets]
        self.line += ["--address", address]
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Begin, or go on with what there is."""
        self.starts += 1
        more = ["--resume"] if self._begun() else []
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self.process = subprocess.Popen(self.line + more, stdout=self.log, stderr=subprocess.STDOUT)

    def _begun(self) -> bool:
        return any((self.out / "trials").glob("experiment_state-*.json"))

    def kill(self) -> None:
        """Kill the command alone; what it had started lives on."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if not self._begun():  # nothing to resume: as a user would, begin again
            for path in self.out.glob("*.json"):
                path.unlink()

    @property
    def running(self) -> bool:
        """Whether the command has not ended."""
        return self.process.poll() is None

    def said(self) -> str:
        """What the command has printed."""
        self.log.seek(0)
        return self.log.read()


def reports(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Every report of every trial in the order in which they came, repeated ones too."""
    return {trial: [report.result for report in mine] for trial, mine in read_log(out).items()}


def kill_a_worker(out: Path) -> bool:
    """Kill the process of a trial that is under way; False if there is none."""
    pids = {rows[-1]["pid"] for rows in reports(out).values() if rows and not rows[-1]["done"]}
    for pid in random.sample(sorted(pids), len(pids)):
        try:
            if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():  # a process of an earlier driver may be gone
                os.kill(pid, signal.SIGKILL)
                return True
        except OSError:
            continue
    return False


def disturb(driver: Driver, cluster: Cluster, kills: int, low: float, high: float) -> list[str]:
    """Kill in turn, at random moments, until the experiment ends; returns what was killed."""
    killed: list[str] = []
    known, since = 0, time.monotonic()
    wait_until = time.monotonic() + high
    while driver.running:
        time.sleep(0.2)
        now = sum(map(len, reports(driver.out).values())) if driver.out.exists() else 0
        if now != known:
            known, since = now, time.monotonic()
        if time.monotonic() - since > STUCK:
            raise RuntimeError(f"no report for {STUCK:.0f} s; the command had said:\n{driver.said()}")
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
        print(f"{len(killed)}/{kills}  killed a {kind}; {now} reports", flush=True)
        wait_until = time.monotonic() + random.uniform(low, high)
    if driver.process.returncode != 0:
        raise RuntimeError(f"the command ended with status {driver.process.returncode}:\n{driver.said()}")
    return killed


def replay(config: dict[str, Any], last: dict[str, Any]) -> list[str]:
    """Names of the numbers in a trial's last report that training it alone does not give again."""
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
    """What holds at the end, from the files of the experiment alone."""
    results = pd.read_csv(out / "results.csv", dtype={"trial_id": str})
    trials = sorted(results["trial_id"].unique())
    written = reports(out)
    last = {trial: written[trial][-1] for trial in trials}
    restarted = 0
    for trial in trials:
        furthest = 0
        for row in written[trial]:
            # With a checkpoint written and reported on, nothing begins at 1 again.
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
    """Whether the results hold every report of a trial once."""
    return sorted(iterations) == list(range(1, len(iterations) + 1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, kill, resume, check."""
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
    parser.add_argument("--seed", type=whole(0), default=0, help="of the moments")
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
        print(f"`--kills {options.kills}` did not fit into this experiment, got {len(killed)}: lower `--between`")
    if not good or len(killed) < options.kills:
        sys.exit(1)
    if options.json:
        write(options.json, record)


if __name__ == "__main__":
    main()
