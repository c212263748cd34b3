"""Searchers of Ray Tune on functions with a known minimum, with the few trials that an outer search has.

    python -m benchmarks.outer_search --seeds 10 --budget 16,32
    python -m benchmarks.outer_search --functions training,branin --searchers random,bo --budget 16 --workers 2
    python -m benchmarks.outer_search --points 100,500 --searchers bo,optuna-gp

Two trials are in flight. A trial takes no time: only the searcher runs, as in Tune's driver. It is told noisy values;
the best value is without noise. `benchmarks.outer_search.functions` lists the functions. With `--points`, the command
measures the time of one suggestion after that many finished trials. A command that was stopped continues from the
searches in its `--json`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import ray
import skopt

from benchmarks.common.arguments import prepare, several, whole
from benchmarks.common.machine import versions
from benchmarks.common.record import command_line, read, rounded, write
from benchmarks.outer_search.functions import FUNCTIONS
from benchmarks.outer_search.runs import quiet, run, suggestion
from benchmarks.outer_search.summary import summary

#: The searchers that are compared by default.
SEARCHERS = ("random", "bo", "optuna-tpe", "optuna-gp")


#: Keys of every row of a record.
KEYS = ("function", "searcher", "seed", "budget", "best", "seconds")
Job = tuple[str, str, int, int]


def _job(row: Mapping[str, Any]) -> Job:
    return row["function"], row["searcher"], row["seed"], row["budget"]


def _all(jobs: Sequence[Job], known: Mapping[Job, dict[str, Any]], workers: int) -> Iterator[list[dict[str, Any]]]:
    """Run the searches that are not known, and yield the rows of all that have ended, in the order of the jobs."""
    found, started = {job: known[job] for job in jobs if job in known}, time.monotonic()
    with ProcessPoolExecutor(workers, get_context("spawn"), quiet) as pool:
        running = {pool.submit(run, *job): job for job in jobs if job not in found}
        for done in as_completed(running):
            row = found[running[done]] = rounded(done.result())
            print(
                f"{len(found)}/{len(jobs)}  {time.monotonic() - started:.0f} s  {row['function']}  {row['searcher']}  "
                f"budget {row['budget']}  seed {row['seed']}  best {row['best']}  {row['seconds']} s",
                flush=True,
            )
            yield [found[job] for job in jobs if job in found]
    if not running:
        yield list(found.values())


def _lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    return ["  ".join(f"{key} {value}" for key, value in line.items()) for line in summary(rows)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all searches and write their record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.outer_search", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--functions", type=several(str), default=list(FUNCTIONS), help=", ".join(FUNCTIONS))
    parser.add_argument("--searchers", type=several(str), default=list(SEARCHERS), help=", ".join(SEARCHERS))
    parser.add_argument("--seeds", type=whole(), default=10, help="number of searches, with the seeds 0, 1, …")
    parser.add_argument("--first-seed", type=whole(0), default=0)
    parser.add_argument("--budget", type=several(whole(2)), default=[16, 32], help="numbers of trials of a search")
    parser.add_argument("--points", type=several(whole(10)), help="numbers of finished trials before a suggestion")
    parser.add_argument("--workers", type=whole(), default=1, help="processes, each with one thread")
    parser.add_argument("--json", type=Path, help="file for the record; searches that it holds are not run again")
    options = parser.parse_args(arguments)
    for option, given, names in (
        ("--functions", options.functions, FUNCTIONS),
        ("--searchers", options.searchers, SEARCHERS),
    ):
        wrong = [name for name in given if name not in names]
        if wrong:
            parser.error(f"`{option}` must be of {', '.join(names)}, got {wrong[0]!r}")
    prepare(parser, options.json)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when a worker starts
    head = {
        "command": command_line("benchmarks.outer_search", arguments),
        **versions(),
        "ray": ray.__version__,
        "optuna": optuna.__version__,
        "scikit_optimize": skopt.__version__,
    }
    rows: list[dict[str, Any]] = []
    if options.points:
        quiet()
        for searcher in options.searchers:
            rows += [rounded(suggestion(searcher, points)) for points in options.points]
            print("\n".join(map(str, rows[-len(options.points) :])), flush=True)
    else:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        jobs = [
            (function, searcher, seed, budget)
            for budget in options.budget
            for seed in seeds
            for function in options.functions
            for searcher in options.searchers
        ]
        known: dict[Job, dict[str, Any]] = {}
        if options.json and options.json.exists():
            try:
                known = {_job(row): row for row in read(options.json, KEYS)["rows"]}
            except ValueError as error:
                parser.error(str(error))
        for rows in _all(jobs, known, options.workers):
            if options.json:
                write(options.json, {**head, "summary": summary(rows), "rows": rows})
        print("\n".join(_lines(rows)))
    if options.json and options.points:
        write(options.json, {**head, "rows": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
