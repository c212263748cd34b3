"""The table of versions: with what the records were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import MISSING, grid
from benchmarks.common.pages import RECORDS, Table, load

NAMES = {"python": "Python", "torch": "PyTorch", "ray": "Ray", "ray_deltastn": "ray_deltastn", "processor": "processor"}


def of(record: Any) -> dict[str, str]:
    """Versions of a record, wherever it has them."""
    first = record[0] if isinstance(record, list) else record
    found: Mapping[str, Any] = first.get("versions", first)
    return {key: str(found.get(key, MISSING)) for key in NAMES}


def versions() -> str:
    """A row per set of versions, and how many records have it."""
    counts: dict[tuple[str, ...], int] = {}
    for path in sorted(RECORDS.rglob("*.json")):
        key = tuple(of(load(str(path.relative_to(RECORDS)))).values())
        counts[key] = counts.get(key, 0) + 1
    rows = [[f"{counts[key]}", *key] for key in sorted(counts, key=lambda key: -counts[key])]
    return grid(["records", *NAMES.values()], rows, left=0)


TABLES = {"versions": Table(versions, ())}
