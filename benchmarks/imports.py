"""How long the package and the command take to start, relative to `import torch`.

    python -m benchmarks.imports --repeats 7 --json FILE

Each use is a new process. The uses take turns, so that other work on the machine affects all of them alike. A ratio is
the median over the turns of the CPU time of the use, divided by that of `import torch` in the same turn. The first turn
is not counted: it fills the cache of the file system.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.arguments import prepare, whole
from benchmarks.common.machine import versions
from benchmarks.common.record import command_line, rounded, write

#: The largest ratio that the design allows.
MOST = 1.5
TORCH = "import torch"
_COMMAND = [sys.executable, "-m", "ray_deltastn"]
#: What is measured → the command line of the process. The first is the reference.
USES = {
    TORCH: [sys.executable, "-c", TORCH],
    "import ray_deltastn": [sys.executable, "-c", "import ray_deltastn"],
    "every name without Ray": [
        sys.executable,
        "-c",
        "import ray_deltastn as rd; rd.Task, rd.HyperSpace, rd.Dropout, rd.SelfTuner, rd.refit",
    ],
    "ray-deltastn --help": [*_COMMAND, "--help"],
    "ray-deltastn tasks": [*_COMMAND, "tasks"],
    "ray-deltastn status, no such folder": [*_COMMAND, "status", "no_such_folder"],
    "ray-deltastn run, no such file": [*_COMMAND, "run", "no_such_file.yaml"],
    "ray-deltastn run, a slip in the file": [*_COMMAND, "run", "configs/digits_hybrid.yaml", "train.lrr=1"],
    "ray-deltastn compare, a slip in the file": [*_COMMAND, "compare", "configs/digits_compare.yaml", "trils=1"],
}


def seconds_of(line: Sequence[str]) -> tuple[float, float]:
    """CPU seconds and wall seconds of a process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def summary(turns: Sequence[dict[str, tuple[float, float]]]) -> list[dict[str, Any]]:
    """One row per use: median CPU seconds and wall seconds, and the median of the ratios to `import torch`.

    Args:
        turns: for each turn, CPU and wall seconds of every use.
    """
    rows = []
    for use in turns[0]:
        cpu, wall = zip(*(turn[use] for turn in turns), strict=True)
        ratios = [turn[use][0] / turn[TORCH][0] for turn in turns]
        row = {"use": use, "cpu_seconds": statistics.median(cpu), "wall_seconds": statistics.median(wall)}
        rows.append({**row, "ratio": statistics.median(ratios), "n": len(turns)})
    return rows


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    verdict = "within" if row["ratio"] <= MOST else "above"
    return f"{row['use']}: {row['cpu_seconds']:.2f} s, {row['ratio']:.2f} × `{TORCH}`, {verdict} {MOST}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Start every use in turns, print the ratios, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=whole(), default=7, help="number of turns that count")
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args(arguments)
    prepare(parser, options.json)
    turns = [{use: seconds_of(words) for use, words in USES.items()} for _ in range(options.repeats + 1)]
    rows = [rounded(row, 3) for row in summary(turns[1:])]
    for row in rows:
        print(line(row))
    if options.json:
        write(
            options.json,
            {"command": command_line("benchmarks.imports", arguments), "versions": versions(), "rows": rows},
        )


if __name__ == "__main__":
    main()
