"""The record of the command, which is written after each piece, so that an interrupted command continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Properties of a machine and of its software that all rows of a record share.
SHARED = ("hardware", "torch", "ray_deltastn")


def read(path: Path) -> dict[str, Any]:
    """The record so far; empty if there is none.

    Raises:
        ValueError: if the file holds something else.
    """
    if not path.exists():
        return {"runs": 0, "rows": []}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`{path}` must be a record of this command, got: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list) or "runs" not in found:
        raise ValueError(f"`{path}` must be a record of this command, got another file")
    return found


def rows_of(path: Path, part: str) -> dict[str, dict[str, Any]]:
    """The rows of a part so far, by name."""
    return {row["name"]: row for row in read(path)["rows"] if row["part"] == part}


def finished(row: Mapping[str, Any], run: int) -> bool:
    """Whether a piece need not run again: it has passed, or has failed in this run of the command."""
    return bool(row["passed"]) or row["run"] == run


def add(record: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Put a row into a record, in the place of an earlier row of the same piece."""
    key = (row["part"], row["name"])
    record["rows"] = [old for old in record["rows"] if (old["part"], old["name"]) != key] + [dict(row)]


def require_same(record: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Check that a record was made on this kind of machine.

    Raises:
        ValueError: if it was made on another one.
    """
    for name in SHARED:
        if name in record and record[name] != about[name]:
            raise ValueError(
                f"all rows of a record must have the same {name}, got {record[name]!r} in `--out` and {about[name]!r} "
                "here; use another folder"
            )
