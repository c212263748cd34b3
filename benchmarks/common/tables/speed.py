"""Tables of the cost of a cycle relative to plain training; each row of the record has one network and one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import grid
from benchmarks.common.pages import Table

Rows = Sequence[Mapping[str, Any]]
RATIOS = {
    "flop_ratio": "FLOPs",
    "cpu_time_ratio": "CPU time",
    "saved_memory_ratio": "memory kept for backward",
}


def _line(row: Mapping[str, Any]) -> list[str]:
    share = {1.0: "", 0.25: ", Θ on ¼"}[row["response_fraction"]]
    method = f"`{row['method']}`{share}"
    pictures = [f"{row['images_per_second']}", f"{row['plain_images_per_second']}"]
    return [row["net"], method, *(f"{row[key]:.2f}" for key in RATIOS), *pictures]


def _plain(row: Mapping[str, Any]) -> bool:
    return row["graph"] == "off" and not row["channels_last"]


def costs(rows: Rows) -> str:
    """Ratios to plain training, and images per second, for each network and method."""
    nets = list(dict.fromkeys(row["net"] for row in rows))
    shown = sorted((row for row in rows if _plain(row)), key=lambda row: nets.index(row["net"]))
    heads = ["network", "method", *RATIOS.values(), "images per second", "images per second, plain training"]
    return grid(heads, [_line(row) for row in shown], left=2)


def options(rows: Rows) -> str:
    """The same columns for options that only change the speed; each row follows the row without the option."""
    others = [row for row in rows if not _plain(row)]
    same = ("net", "method", "response_fraction")
    lines = []
    for net in dict.fromkeys(row["net"] for row in others):
        tried = [row for row in others if row["net"] == net]
        without = [row for row in rows if _plain(row) and all(row[key] == tried[0][key] for key in same)]
        for row in (*without, *tried):
            option = "`channels_last: true`" if row["channels_last"] else f"`graph: {row['graph']}`"
            name, method, *cells = _line(row)
            lines.append([name, method, "none" if _plain(row) else option, *cells])
    heads = ["network", "method", "option", *RATIOS.values(), "images per second", "images per second, plain training"]
    return grid(heads, lines, left=3)


def imports(record: Mapping[str, Any]) -> str:
    """CPU time of each use in a new process, and its ratio to `import torch`."""
    lines = [[f"`{row['use']}`", f"{row['cpu_seconds']:.2f}", f"{row['ratio']:.2f}"] for row in record["rows"]]
    return grid(["a new process", "CPU seconds", "ratio to `import torch`"], lines)


TABLES = {
    "imports": Table(imports, ("imports.json",)),
    "speed": Table(costs, ("speed.json",)),
    "speed-options": Table(options, ("speed.json",)),
}
