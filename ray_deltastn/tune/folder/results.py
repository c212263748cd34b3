"""The results of an experiment as a table, with one row per report of every trial."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from ray_deltastn.training.files import written_whole
from ray_deltastn.training.tables import EXACT
from ray_deltastn.training.tables import read_results as read_results  # beside `write_results`
from ray_deltastn.tune.folder.layout import LOG_FILE, PARQUET_FILE, RESULTS_FILE, ResumeError
from ray_deltastn.tune.folder.log import last_of_each, read_log
from ray_deltastn.tune.folder.states import known_trials
from ray_deltastn.tune.nested import flat


def collect(out: Path, known: Collection[str] | None = None) -> pd.DataFrame:
    """All reports of all trials, in order of time.

    A config value has the column `config/<name>`. The report columns are those of `DeltaSTNTrainable`; `timestamp` is
    the Unix time of the report, in seconds.

    A restored trial reports some steps twice; the later report counts. If the driver was killed before it saved a new
    trial, Tune starts that trial again with another id. Reports of the first id are left out.

    Args:
        out: results folder.
        known: ids of the experiment's trials; by default those in Tune's newest state.

    Raises:
        ResumeError: if there is no report.
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
    """Write `results.parquet` and then `results.csv`, each atomically; `results.csv` marks the end of the run."""
    plain = results.copy()
    # Parquet needs one type per column. Columns of mixed types become text.
    for name in [name for name in plain if pd.api.types.is_object_dtype(plain[name])]:
        plain[name] = [v if v is None or isinstance(v, str) else json.dumps(v, default=str) for v in plain[name]]
    with written_whole(out / PARQUET_FILE) as draft:
        plain.to_parquet(draft, index=False)
    with written_whole(out / RESULTS_FILE) as draft:
        results.to_csv(draft, index=False)


def read_lineage(path: Path) -> pd.DataFrame:
    """Read `lineage.csv`: the copies made by `pbt`, see `lineage`."""
    copies: pd.DataFrame = pd.read_csv(path, dtype={"trial_id": str, "copied_from": str}, **EXACT)
    return copies
