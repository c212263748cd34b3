"""The table of all reports of an experiment, read from its file, and the best report of each trial."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ray_deltastn.training.file_names import PARQUET_FILE

#: Options with which pandas reads floats to the last bit. From 3.1 on it always does, and warns about the option.
EXACT: dict[str, Any] = (
    {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}
)


def ranked(reports: pd.DataFrame, metric: str, mode: str) -> pd.DataFrame:
    """One row per trial: its best report by a metric; the best trial comes first.

    Args:
        reports: the reports of all trials.
        metric: column of `reports`. For `best_valid_loss` the best report is the one with the lowest `valid_loss`.
        mode: `min` or `max`.
    """
    sign = 1.0 if mode == "min" else -1.0
    rank = (sign * reports[metric.removeprefix("best_")]).fillna(math.inf)
    rows = reports.assign(_rank=rank).loc[rank.groupby(reports["trial_id"]).idxmin()]
    found: pd.DataFrame = rows.sort_values("_rank", kind="stable").drop(columns="_rank").reset_index(drop=True)
    return found


def read_results(path: Path) -> pd.DataFrame:
    """Read `results.csv`. Trial ids and the texts of a config stay texts, also if they look like `1e3` or `NA`."""
    parquet = path.with_name(PARQUET_FILE)
    # A CSV file has no types. The Parquet file beside it has them.
    types = pq.read_schema(parquet) if parquet.exists() else pa.schema([])
    texts = {field.name for field in types if field.name.startswith("config/") and _is_text(field.type)}
    names = pd.read_csv(path, nrows=0).columns
    results: pd.DataFrame = pd.read_csv(
        path,
        dtype=dict.fromkeys(["trial_id", *sorted(texts.intersection(names))], str),
        keep_default_na=False,
        na_values={name: [""] if name in texts else ["", "nan", "NaN"] for name in names},
        **EXACT,
    )
    return results


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
