"""The table of networks of libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import MISSING, grid
from benchmarks.common.pages import Table

#: An error below this number is rounding in float64.
ROUNDING = 1e-9


def models(record: Mapping[str, Any]) -> str:
    """Whether each network works, the share of its weights that respond, errors, and lines."""
    lines = []
    for row in record["rows"]:
        works = "yes" if row["works"] else "no"
        errors = [_error(row[key]) for key in ("linearised", "displaced")]
        lines.append([row["library"], row["name"], works, f"{row['share']:.1%}", *errors, str(row["lines"])])
    heads = ["library", "network", "trains", "responds", "error, linearised", "error, displaced", "lines"]
    return grid(heads, lines, left=3)


def gaps(record: Mapping[str, Any]) -> str:
    """The largest parameter without a response of each network that has one, or why the network is refused."""
    lines = [
        [row["library"], row["name"], (row["gap"] if row["works"] else row["reason"]).replace("|", "\\|")]
        for row in record["rows"]
        if row["gap"] or not row["works"]
    ]
    return grid(["library", "network", "largest part without a response, and why"], lines, left=3)


def _error(value: float | None) -> str:
    if value is None:
        return MISSING
    return "rounding" if value < ROUNDING else f"{value:.1g}"


TABLES = {"models": Table(models, ("models.json",)), "models-gaps": Table(gaps, ("models.json",))}
