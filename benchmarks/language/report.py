"""The record of finished runs: one row for each run, and a summary of each contender over the seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.machine import versions
from benchmarks.common.record import figures, grown, rounded
from benchmarks.language.problems import CONTENDERS, PROBLEMS, TRIALS
from benchmarks.language.runs import Run, best


def report(found: Sequence[Run], command: str, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of finished runs.

    Args:
        found: the runs.
        command: the command of the record.
        earlier: a record whose runs are kept, unless they are among `found`.

    Raises:
        ValueError: if no run has ended.
    """
    if not found:
        raise ValueError("`--out` must have a run that has ended, got none")
    record = grown(earlier, (row(run) for run in found), _of, command, versions())
    return {**record, "summary": summary(record["rows"]), "rows": record["rows"]}


def _of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["problem"], row["seed"], row["name"]


def row(run: Run) -> dict[str, Any]:
    """One run: its configuration, its scores at the best validation loss and at the end, and its curves.

    `lr` is the learning rate after each epoch.
    """
    kept = run.read()
    assert kept is not None
    rows, bits = kept["rows"], run.of.bits
    at_best = best(rows)
    curve = {
        name: [rounded(score(one[f"{name}_loss"], bits), 5) for one in rows] for name in ("train", "valid", "test")
    }
    values = {name: [rounded(one["values"][name], 4) for one in rows] for name in rows[0]["values"]}
    return {
        "problem": run.problem,
        "seed": run.seed,
        "name": run.name,
        "config": kept["config"],
        "seconds": rounded(kept["seconds"], 4),
        "best_epoch": at_best["epoch"],
        "valid": rounded(score(at_best["valid_loss"], bits), 5),
        "test": rounded(score(at_best["test_loss"], bits), 5),
        "last_valid": curve["valid"][-1],
        "lr": [rounded(one["lr"], 4) for one in rows],
        "curve": curve,
        "values": values,
    }


def score(loss: float | None, bits: bool) -> float | None:
    """Perplexity, or bits per character, of a mean loss in nats."""
    if loss is None:
        return None
    return loss / math.log(2) if bits else math.exp(min(loss, 100.0))


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each contender on each problem, over the seeds; of random search, the best of its trials on each seed."""
    found = []
    for problem in PROBLEMS:
        for contender in CONTENDERS:
            seeds = [one for one in per_seed(rows, problem, contender) if one is not None]
            if seeds:
                found.append(
                    {
                        "problem": problem,
                        "contender": contender,
                        "seeds": len(seeds),
                        **{name: figures([one[name] for one in seeds]) for name in ("valid", "test", "seconds")},
                    }
                )
    return found


def per_seed(rows: Sequence[Mapping[str, Any]], problem: str, contender: str) -> list[dict[str, Any] | None]:
    """Scores and seconds of a contender on each seed; None where runs are missing."""
    own = [one for one in rows if one["problem"] == problem]
    found: list[dict[str, Any] | None] = []
    for seed in sorted({one["seed"] for one in own}):
        names = [f"random{trial}" for trial in range(TRIALS)] if contender == "random" else [contender]
        mine = [one for one in own if one["seed"] == seed and one["name"] in names]
        if len(mine) < len(names):
            found.append(None)
            continue
        top = min(mine, key=lambda one: math.inf if one["valid"] is None else one["valid"])
        seconds = sum(one["seconds"] for one in mine)
        found.append({"valid": top["valid"], "test": top["test"], "seconds": seconds})
    return found
