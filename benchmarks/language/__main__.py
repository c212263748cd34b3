"""Language models: self-tuned runs against constants and random search, on words with an LSTM and on characters.

    python -m benchmarks.language --out DIR --workers 2
    python -m benchmarks.language --out DIR --problems lstm-100k --contenders plain,delta-stn --seeds 1
    python -m benchmarks.language --out DIR --report --json benchmarks/records/language/runs.json [--add] --plot FOLDER
    python -m benchmarks.language --out DIR --path book.txt --set epochs=40

Each run uses one thread and is kept in a file of `--out`, with its state after each epoch: the same command goes on
where it was stopped. `--minutes` stops after that time. The text is the Penn Treebank of the data root
(`RAY_DELTASTN_DATA`), or `--path`. `--add` keeps the runs of the record in `--json` that `--out` does not have, so that
a record can grow. The exit status is 3 if something is missing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common.arguments import number, prepare, several, whole
from benchmarks.common.record import add_option, command_line, earlier_record, write
from benchmarks.language.pictures import draw_all
from benchmarks.language.problems import CONTENDERS, PROBLEMS, SMALL
from benchmarks.language.report import report
from benchmarks.language.runs import runs

UNFINISHED = 3


def change(text: str) -> tuple[str, Any]:
    """`name=value`, with the value in YAML."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be name=value, got {text!r}")
    return name, yaml.safe_load(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--problems", type=several(str), default=list(SMALL), help=", ".join(PROBLEMS))
    parser.add_argument("--contenders", type=several(str), default=list(CONTENDERS), help=", ".join(CONTENDERS))
    parser.add_argument("--seeds", type=whole(), default=2, help="number of seeds")
    parser.add_argument("--path", type=Path, help="a text file or a folder of texts instead of the Penn Treebank")
    parser.add_argument("--set", type=change, action="append", default=[], help="an option of the task or of training")
    parser.add_argument("--minutes", type=number(above=0.0), help="stop after this time")
    parser.add_argument("--workers", type=whole(), default=1, help="number of processes")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--json", type=Path, help="file for the record")
    add_option(parser)
    parser.add_argument("--plot", type=Path, help="folder for the pictures")
    options = parser.parse_args(arguments)
    for what, given, known in (
        ("problems", options.problems, list(PROBLEMS)),
        ("contenders", options.contenders, list(CONTENDERS)),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"`--{what}` must be of {', '.join(known)}, got {unknown[0]!r}")
    earlier = earlier_record(parser, options)
    prepare(parser, options.json)
    changes = (*options.set, *([("path", str(options.path.absolute()))] if options.path else []))
    until = None if options.minutes is None else time.time() + 60 * options.minutes
    every = [
        run
        for seed in range(options.seeds)
        for problem in options.problems
        for contender in options.contenders
        for run in runs(problem, seed, contender, options.out, changes)
    ]
    if not options.report:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
            for future in as_completed([pool.submit(run.train_until, until) for run in every]):
                future.result()
    if options.json or options.plot:
        command = command_line("benchmarks.language", arguments).replace(str(options.out), "DIR")
        found = report([run for run in every if run.done], command, earlier)
        if options.json:
            write(options.json, found)
        if options.plot:
            draw_all(found["rows"], options.plot)
    if not all(run.done for run in every):
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    main()
