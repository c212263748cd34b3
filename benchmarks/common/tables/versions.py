"""Table of the software versions and processors that made the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import MISSING, grid
from benchmarks.common.pages import RECORDS, Table, load

NAMES = {"python": "Python", "torch": "PyTorch", "ray": "Ray", "ray_deltastn": "ray_deltastn", "processor": "processor"}


def of(record: Any) -> dict[str, str]:
    """Versions in a record, at its top level or under `versions`."""
    first = record[0] if isinstance(record, list) else record
    found: Mapping[str, Any] = first.get("versions", first)
    return {key: str(found.get(key, MISSING)) for key in NAMES}


def versions() -> str:
    """One row per set of versions, with the number of records that have it."""
    counts: dict[tuple[str, ...], int] = {}
    for path in sorted(RECORDS.rglob("*.json")):
        key = tuple(of(load(str(path.relative_to(RECORDS)))).values())
        counts[key] = counts.get(key, 0) + 1
    rows = [[f"{counts[key]}", *key] for key in sorted(counts, key=lambda key: -counts[key])]
    return grid(["records", *NAMES.values()], rows, left=0)


TABLES = {"versions": Table(versions, ())}
