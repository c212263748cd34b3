"""The reports of an experiment as a table: one row per report of every trial."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from ray_deltastn.training.files import written_whole
from ray_deltastn.tune.folder.layout import LOG_FILE, PARQUET_FILE, RESULTS_FILE, ResumeError
from ray_deltastn.tune.folder.log import last_of_each, read_log
from ray_deltastn.tune.folder.states import known_trials
from ray_deltastn.tune.nested import flat

#: Reads floats to the last bit: pandas before 3.1 does so only when told, later ones always, and warn when told.
EXACT: dict[str, Any] = (
    {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}
)


def collect(out: Path, known: Collection[str] | None = None) -> pd.DataFrame:
    """All reports of all trials in the order in which they were made.

    Config columns are `config/<name>`, report columns as in `SelfTuner.step`; `timestamp` is when the trial made the
    report, in Unix time, in seconds.

    A trial that was restored reports some steps twice; the later report counts. A trial that a killed driver had begun
    and Tune's saved state does not know was begun again under another name: the stray one is left out.

    Args:
        out: results folder.
        known: ids of the experiment's trials; by default those in Tune's newest state.
    """
    known = known_trials(out) if known is None else known
    rows = [
        {
            **flat({**report.result, "config": report.config}, separator="/"),
            "trial_id": trial_id,
        }
        for trial_id, reports in sorted(read_log(out).items())
        if not known or trial_id in known
        for report in last_of_each(reports)
    ]
    if not rows:
        raise ResumeError(f"`{out / LOG_FILE}` must hold at least one report, got none")
    found: pd.DataFrame = pd.DataFrame(rows).sort_values("timestamp", kind="stable", ignore_index=True)
    return found


def write_results(results: pd.DataFrame, out: Path) -> None:
    """Write `results.parquet` and `results.csv`, each whole or not at all, the second last: with it a run has ended."""
    plain = results.copy()
    # Columns of values that are neither all numbers nor all text become text.
    for name in [name for name in plain if pd.api.types.is_object_dtype(plain[name])]:
        plain[name] = [v if v is None or isinstance(v, str) else json.dumps(v, default=str) for v in plain[name]]
    with written_whole(out / PARQUET_FILE) as draft:
        plain.to_parquet(draft, index=False)
    with written_whole(out / RESULTS_FILE) as draft:
        results.to_csv(draft, index=False)


def read_results(path: Path) -> pd.DataFrame:
    """Reports from a CSV file; the id of a trial stays text, also when it looks like a number (`4371810e6`)."""
    return pd.read_csv(path, dtype={"trial_id": str}, **EXACT)


def read_lineage(path: Path) -> pd.DataFrame:
    """What `pbt` has copied, see `lineage`."""
    return pd.read_csv(path, dtype={"trial_id": str, "copied_from": str}, **EXACT)
