"""The work of the suite: every contender on every task and seed, in one process or in several."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.common.machine import quiet, versions
from benchmarks.common.record import grown, rounded, write
from benchmarks.headroom.contenders import CONTENDERS, contender
from benchmarks.headroom.problems import SUITE
from benchmarks.headroom.refits import REFITS, refitted
from benchmarks.headroom.results import limited, scored
from benchmarks.headroom.runs import Clock, Runs, cheap_arithmetic

#: Picked learning rates, momenta and batch sizes.
PLAIN = Path(__file__).parents[1] / "records" / "headroom" / "plain.json"
#: The grid from which they are picked.
GRID = {"lr": (0.01, 0.03, 0.1), "momentum": (0.5, 0.9), "batch_size": (50, 100)}


class OutOfTimeError(Exception):
    """The time of the command is over."""


class Timed:
    """Work that stops when its time is over.

    Attributes:
        until: Unix time of the end; None means no end.
    """

    until: float | None

    def lines(self) -> Iterator[str]:
        """Do the work; a line for each part."""
        raise NotImplementedError

    def run(self) -> bool:
        """Do the work and print its lines; return whether all is done."""
        cheap_arithmetic()
        quiet()
        try:
            for line in self.lines():
                print(line, flush=True)
        except OutOfTimeError:
            return False
        return True

    def check(self) -> None:
        """Raise OutOfTimeError if the time is over."""
        if self.until is not None and time.time() > self.until:
            raise OutOfTimeError


@dataclass(frozen=True)
class Work(Timed):
    """What one process does: the contenders of one task and seed."""

    task: str
    seed: int
    methods: tuple[str, ...]
    out: Path
    until: float | None

    def lines(self) -> Iterator[str]:
        """Run the contenders."""
        for name, entry in self.entries():
            yield f"{self.task} seed {self.seed}  {name}: {said(entry)}"

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each contender with what a record keeps of it."""
        runs = Runs(self.task, SUITE[self.task](), self.seed, self.out, picked(self.task), self.check)
        plain = [point.seconds for point in CONTENDERS["plain"].trace(runs, 0.0)][-1]
        for name in self.methods:
            if name in REFITS:
                before, after = refitted(runs, name)
                yield name, {"before": before, "after": after}
                continue
            one = contender(name)
            if name != "trivial-augment" or runs.problem.images:
                yield name, scored(limited(one.trace(runs, plain), one.largest * plain * 1.02), plain)


def said(entry: Mapping[str, Any]) -> str:
    """One line about what a record keeps."""
    if "after" in entry:
        return f"test loss {entry['before']:.4f} before, {entry['after']:.4f} after"
    valid = entry["bests"][-1][1] if entry["bests"] else float("inf")
    return f"best valid {valid:.4f}, {entry['seconds']:.0f} s"


def picked(task: str) -> dict[str, Any]:
    """Learning rate, momentum and batch size of a task: the grid's row with the best validation loss.

    Raises:
        ValueError: if the grid was not run on this task.
    """
    rows = [row for row in json.loads(PLAIN.read_text())["rows"] if row["task"] == task] if PLAIN.exists() else []
    if not rows:
        raise ValueError(f"`{PLAIN.name}` must have rows of the task {task!r}, got none; run `--grid` first")
    best = min(rows, key=lambda row: row["best_valid_loss"])
    return {name: best[name] for name in GRID}


def grid_of(task: str) -> list[dict[str, Any]]:
    """The plain run with each setting of the grid, on a seed that the suite does not use."""
    cheap_arithmetic()
    quiet()
    problem = SUITE[task]()
    rows = []
    for values in product(*GRID.values()):
        setting = dict(zip(GRID, values, strict=True))
        runs = Runs(task, problem, 1000, Path(), setting)
        run, best = runs.training(Clock(), method="fixed"), float("inf")
        while not run.done:
            point = run.step()
            best = min(best, point.valid)
        row = {"task": task, **setting, "best_valid_loss": best, "seconds": point.seconds}
        print("  ".join(f"{key} {value}" for key, value in rounded(row, 4).items()), flush=True)
        rows.append(rounded(row))
    return rows


def pick(tasks: Sequence[str], path: Path, workers: int, command: str) -> None:
    """Run the grid on some tasks, and write or extend the record."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in rows if row["task"] not in tasks]
    for found in spread_out([partial(grid_of, task) for task in tasks], workers):
        rows += found
        write(path, {"command": command, "versions": versions(), "rows": sorted(rows, key=lambda r: r["task"])})


def spread_out(jobs: Sequence[partial[Any]], workers: int) -> Iterator[Any]:
    """Results of jobs as they end, in one process or in several."""
    if workers == 1:
        for job in jobs:
            yield job()
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(job) for job in jobs]):
            yield future.result()


def report(works: Sequence[Work], command: str, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of what is in the folder; contenders that are not finished there are left out.

    Args:
        works: tasks, seeds and contenders.
        command: the command of the record.
        earlier: a record whose rows are kept where the folder has none. Budgets of a row are counted in plain runs that
            were measured beside it.
    """
    cheap_arithmetic()
    rows = []
    for work in works:
        for name in work.methods:
            try:
                for _, entry in Work(work.task, work.seed, (name,), work.out, until=0.0).entries():
                    rows.append(rounded({"task": work.task, "seed": work.seed, "contender": name, **entry}, 5))
            except OutOfTimeError:
                continue
    return grown(earlier, rows, _of, command, versions())


def _of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["seed"], row["contender"]
