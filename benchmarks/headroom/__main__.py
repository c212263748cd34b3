"""Self-tuned runs against searches of equal cost, on tasks with few training examples.

    python -m benchmarks.headroom --out DIR
    python -m benchmarks.headroom --out DIR --tasks mnist1d-1000,wine --methods plain,random,delta-stn --seeds 2
    python -m benchmarks.headroom --out DIR --minutes 60 --workers 2
    python -m benchmarks.headroom --out DIR --report --json FILE.json --plot FOLDER
    python -m benchmarks.headroom --grid --json benchmarks/records/headroom/plain.json

For each task and seed every contender may spend the CPU seconds of eight plain runs (random search: sixteen runs). The
seeds have different splits, initial weights and orders of the data. Each run uses one thread. All contenders share the
learning rate, the momentum and the batch size, which `--grid` has picked for the plain run. Each contender keeps the
network with its best validation loss; the tables show the test loss of that network.

`--out` keeps each run in a file, so that the same command continues after it was stopped. An unfinished run is made
again. `--minutes` stops all work after that time. The exit status is 3 if something is missing. `--methods` also
accepts refits (see `benchmarks.headroom.refits`). `--method` adds a self-tuned run with other options, such as
`delta-stn:hyper_lr=0.02,hyper_decay=1`.

`--add` keeps the rows of the record in `--json` that `--out` does not have, so that a record can grow.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.arguments import number, prepare, several, whole
from benchmarks.common.record import add_option, command_line, earlier_record, write
from benchmarks.headroom.contenders import CONTENDERS, contender
from benchmarks.headroom.pictures import BUDGET, RANKED, critical_differences, curves
from benchmarks.headroom.problems import SUITE
from benchmarks.headroom.refits import REFITS
from benchmarks.headroom.suite import PLAIN, Work, pick, picked, report, spread_out

UNFINISHED = 3


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw all pictures that the rows suffice for."""
    curves(rows, folder / "curves.png")
    curves(rows, folder / "valid_curves.png", "valid")
    try:
        critical_differences(rows, RANKED, BUDGET, folder / "ranks.png")
    except ValueError as error:
        print(f"no picture of the ranks: {error}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suite, or report it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headroom", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=several(str), default=list(SUITE), help=", ".join(SUITE))
    parser.add_argument(
        "--methods", type=several(str), default=[*CONTENDERS, *REFITS], help=", ".join([*CONTENDERS, *REFITS])
    )
    parser.add_argument("--method", action="append", default=[], help="one more contender, which may have commas")
    parser.add_argument("--seeds", type=whole(), default=5, help="number of seeds")
    parser.add_argument("--first-seed", type=whole(0), default=0)
    parser.add_argument("--minutes", type=number(above=0.0), help="stop after this time")
    parser.add_argument("--workers", type=whole(), default=1, help="number of processes")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--grid", action="store_true", help="pick the learning rate, momentum and batch size")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--json", type=Path, help="file for the record")
    add_option(parser)
    parser.add_argument("--plot", type=Path, help="folder for the pictures")
    options = parser.parse_args(arguments)
    command = command_line("benchmarks.headroom", arguments)
    if options.out is not None:
        command = command.replace(str(options.out), "DIR")  # a record has no paths of a machine
    unknown = [task for task in options.tasks if task not in SUITE]
    if unknown:
        parser.error(f"`--tasks` must be of {', '.join(SUITE)}, got {unknown[0]!r}")
    earlier = earlier_record(parser, options)
    prepare(parser, options.json)
    if options.grid:
        pick(options.tasks, options.json or PLAIN, options.workers, command)
        return
    if options.out is None:
        parser.error("`--out` must name the folder of the runs")
    methods = (*options.methods, *options.method)
    try:
        for name in methods:
            if name not in REFITS:
                contender(name)
        for task in options.tasks:
            picked(task)
    except ValueError as error:
        parser.error(str(error))
    until = None if options.minutes is None else time.time() + 60 * options.minutes
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    works = [Work(task, seed, methods, options.out, until) for seed in seeds for task in options.tasks]
    done = [] if options.report else list(spread_out([partial(work.run) for work in works], options.workers))
    if options.json or options.plot:
        found = report(works, command, earlier)
        if options.json:
            write(options.json, found)
        if options.plot:
            draw(found["rows"], options.plot)
    if not all(done):
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    main()
