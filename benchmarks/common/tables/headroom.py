"""Tables of the suite of tasks with headroom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common.markdown import MISSING, grid
from benchmarks.common.pages import Table
from benchmarks.headroom.pictures import BUDGET, RANKED, blocks_of, label
from benchmarks.headroom.problems import SUITE
from benchmarks.headroom.refits import REFITS
from benchmarks.headroom.results import (
    BUDGETS,
    Blocks,
    at,
    comparisons,
    complete,
    interval,
    losses,
    mean_ranks,
    median,
    shares,
)

Record = Mapping[str, Any]
#: Contenders in the tables of losses.
SHOWN = (
    "plain",
    "random",
    "gp",
    "asha",
    "pbt-4",
    "trivial-augment",
    "stn",
    "delta-stn-paper",
    "delta-stn",
    "hybrid",
    "random-refit",
    "delta-stn-refit",
)


def _blocks(record: Record) -> Blocks:
    return blocks_of(record["rows"])


def _tasks(blocks: Blocks) -> list[str]:
    present = {task for task, _ in blocks}
    return [task for task in SUITE if task in present]


def settings(record: Record) -> str:
    """Setting of the plain run of each task with the best validation loss of the grid."""
    rows = []
    for task in SUITE:
        tried = [row for row in record["rows"] if row["task"] == task]
        if tried:
            best = min(tried, key=lambda row: row["best_valid_loss"])
            shown = [f"{best[key]:g}" for key in ("lr", "momentum", "batch_size", "best_valid_loss", "seconds")]
            rows.append([f"`{task}`", *shown])
    heads = ["task", "learning rate", "momentum", "batch size", "best validation loss", "seconds of a plain run"]
    return grid(heads, rows)


def by_budget(record: Record, which: str = "test") -> str:
    """Mean loss over the seeds of each task, at each budget."""
    blocks = _blocks(record)
    rows = []
    for task in _tasks(blocks):
        own = {key: block for key, block in blocks.items() if key[0] == task}
        for budget in BUDGETS:
            cells = [_mean([at(b[name], budget, which) for b in own.values() if name in b]) for name in SHOWN]
            finite = [float(cell) for cell in cells if cell != MISSING]
            least = f"{min(finite):.3f}" if finite else ""
            rows.append([f"`{task}`", f"{budget:g}", *(f"**{c}**" if c == least else c for c in cells)])
    return grid(["task", "plain runs", *map(label, SHOWN)], rows, left=1)


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if values and all(map(math.isfinite, values)) else MISSING


def ranks(record: Record) -> str:
    """Mean rank of each contender at each budget, over all tasks and seeds that have all contenders."""
    blocks = complete(_blocks(record), RANKED)
    by = {budget: mean_ranks(losses(blocks, RANKED, budget)) for budget in BUDGETS[:-1]}
    order = np.argsort(by[BUDGET])
    rows = [[label(RANKED[i]), *(f"{found[i]:.2f}" for found in by.values())] for i in order]
    return grid(["mean rank in test loss", *(f"{budget:g} plain runs" for budget in by)], rows)


def tests(record: Record) -> str:
    """Δ-STN, with and without a refit, against each other contender: Wilcoxon's test with Holm's correction."""
    blocks = complete(_blocks(record), RANKED)
    table = losses(blocks, RANKED, BUDGET)
    rows = []
    for name in ("delta-stn-refit", "delta-stn"):
        pairs = comparisons(table, RANKED, [task for task, _ in blocks], of=name)
        for pair in sorted(pairs, key=lambda pair: pair.change):
            change = f"{math.expm1(pair.change):+.1%}".replace("-", "−")
            p, of_tasks = f"{pair.p:.2g}", f"{pair.p_of_tasks:.2g}"
            rows.append([label(name), label(pair.second), f"{pair.wins:.0%}", change, p, of_tasks])
    heads = [
        "contender",
        "against",
        "lower test loss in",
        "median difference in test loss",
        "p (Wilcoxon, Holm)",
        "p, one mean for each task",
    ]
    return grid(heads, rows, left=2)


def times(record: Record) -> str:
    """Time to random search's best of 16, as a share of the time of its 16 runs: the median over the seeds."""
    blocks = _blocks(record)
    names = ("delta-stn", "hybrid", "delta-stn-paper", "stn", "random", "gp", "asha")
    found, until = ({name: shares(blocks, name, of_all) for name in names} for of_all in (True, False))
    rows = [[f"`{task}`", *(_share(found[name].get(task, [])) for name in names)] for task in _tasks(blocks)]
    for head, of in (("median of all", found), ("share of the time until its best run: median of all", until)):
        rows.append([head, *(_share(_all(of[name])) for name in names)])
    rows.insert(-1, ["its 5 % and 95 % points", *(_interval(_all(found[name])) for name in names)])
    return grid(["task", *map(label, names)], rows)


def _all(by_task: Mapping[str, Sequence[float]]) -> list[float]:
    return [value for each in by_task.values() for value in each]


def _interval(values: Sequence[float]) -> str:
    return " – ".join("never" if math.isinf(end) else f"{end:.2f}" for end in interval(values)) if values else MISSING


def _share(values: Sequence[float]) -> str:
    middle = median(values)
    reached = sum(map(math.isfinite, values))
    if not values:
        return MISSING
    text = "never" if math.isinf(middle) else f"{middle:.2f}"
    return text if reached == len(values) else f"{text} ({reached} of {len(values)})"


def against_sixteen(record: Record) -> str:
    """Test losses after four plain runs, and of random search's best of sixteen."""
    blocks = _blocks(record)
    rows = []
    for task in _tasks(blocks):
        own = [b for (of, _), b in blocks.items() if of == task and "random" in b]
        theirs = [at(block["random"], BUDGETS[-1], "test") for block in own]
        row = [f"`{task}`", f"{len(own)}", _mean(theirs)]
        for name in ("delta-stn", "delta-stn-refit", "random-refit"):
            pairs = [(at(b[name], BUDGET, "test"), t) for b, t in zip(own, theirs, strict=True) if name in b]
            wins = sum(ours < rival for ours, rival in pairs)
            row.append(f"{_mean([ours for ours, _ in pairs])} ({wins})" if pairs else MISSING)
        rows.append(row)
    names = ("delta-stn", "delta-stn-refit", "random-refit")
    return grid(["task", "seeds", "random search, 16 runs", *(f"{label(n)}, 4 plain runs" for n in names)], rows)


def refits(record: Record) -> str:
    """Test loss of the network with the best validation loss, and of the plain network trained again."""
    rows = []
    blocks = _blocks(record)
    for task in _tasks(blocks):
        own = [block for (of, _), block in blocks.items() if of == task]
        before, after = {}, {}
        for name in REFITS:
            found = [block[name] for block in own if name in block]
            before[name], after[name] = _mean([row["before"] for row in found]), _mean([row["after"] for row in found])
        tuned = [after[name] for name, of in REFITS.items() if of == "delta-stn"]
        random = [before["refit-random"], after["refit-random"]]
        rows.append([f"`{task}`", before["refit-best"], *tuned, *random])
    heads = [
        "task",
        "Δ-STN",
        "refit, up to the best epoch",
        "refit, whole schedule",
        "refit, last values",
        "random search, 16",
        "refit, its constants",
    ]
    return grid(heads, rows)


TABLES = {
    "headroom-refits": Table(refits, ("headroom/suite.json",)),
    "headroom-settings": Table(settings, ("headroom/plain.json",)),
    "headroom-losses": Table(by_budget, ("headroom/suite.json",)),
    "headroom-ranks": Table(ranks, ("headroom/suite.json",)),
    "headroom-tests": Table(tests, ("headroom/suite.json",)),
    "headroom-times": Table(times, ("headroom/suite.json",)),
    "headroom-sixteen": Table(against_sixteen, ("headroom/suite.json",)),
}
