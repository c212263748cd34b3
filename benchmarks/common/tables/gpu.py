"""Tables of the record of a GPU: checks, cost, quality, and several runs at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import MISSING, fixed, grid
from benchmarks.common.pages import Table

Record = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]
#: Text of a page as long as there is no record.
NO_RECORD = "There is no record of a GPU yet."


def _rows(record: Record, part: str) -> Rows:
    return [row for row in record["rows"] if row["part"] == part]


def checks(record: Record) -> str:
    """Each check, whether it has passed, and the figure that is closest to its limit or the broken rule."""
    lines = []
    for row in _rows(record, "correctness"):
        known = {name: row["figures"][name] for name in row["limits"] if row["figures"][name] is not None}
        shares = {name: value / row["limits"][name] for name, value in known.items() if row["limits"][name]}
        name = max(shares, key=shares.__getitem__, default="")
        figure = f"{name}: {row['figures'][name]:.1e}, limit {row['limits'][name]:.0e}" if name else ""
        lines.append([row["name"], "ok" if row["passed"] else "failed", figure if row["passed"] else row["error"]])
    where = f"{record['hardware']}, PyTorch {record['torch']}"
    return f"{where}.\n\n" + grid(["check", "", "closest to its limit"], lines, left=3)


def costs(record: Record) -> str:
    """Time and memory relative to a plain loop of PyTorch, captured alike, and images or sequences per second."""
    lines = []
    for row in _rows(record, "cost"):
        found = row["figures"]
        if not row["passed"]:
            lines.append([row["name"], "", "", *[MISSING] * 4])
            continue
        memory = found.get("memory_ratio")
        rates = [f"{found[key]:,.0f}" for key in ("images_per_second", "plain_images_per_second")]
        ratios = [f"{found['time_ratio']:.2f}", fixed(memory, 2)]
        lines.append([found["net"], found["mode"], f"`{found['preset']}`", *ratios, *rates])
    heads = ["network", "steps", "preset", "time", "peak memory", "examples per second", "plain training"]
    return grid(heads, lines, left=3)


def best_of(rows: Rows) -> Mapping[str, Any]:
    """The run with the best validation loss."""
    found: Mapping[str, Any] = min((row["figures"] for row in rows), key=lambda run: run["valid_loss"])
    return found


def within(rows: Rows, seconds: float) -> Rows:
    """The first runs that together take no more than so many device-seconds, at least one."""
    total = 0.0
    found: list[Mapping[str, Any]] = []
    for row in rows:
        total += row["figures"]["device_seconds"]
        if found and total > seconds:
            break
        found.append(row)
    return found


def contenders(rows: Rows) -> list[tuple[str, Rows]]:
    """Plain training, random search and Δ-STN, each with its runs, at equal device-seconds."""
    runs = [row for row in rows if row["passed"] and "valid_loss" in row["figures"]]
    plain = [row for row in runs if row["name"] == "plain"]
    drawn = [row for row in runs if row["name"].startswith("random")]
    tuned = [row for row in runs if row["name"].startswith("delta-stn")]
    found: list[tuple[str, Rows]] = [("plain", plain), ("`delta-stn`, one run", tuned[:1])]
    if drawn and tuned:
        alike = within(drawn, tuned[0]["figures"]["device_seconds"])
        found.append(("random search, as long as one run of `delta-stn`", alike))
    found.append((f"random search, {len(drawn)} runs", drawn))
    if drawn and tuned:
        alike = within(tuned, sum(row["figures"]["device_seconds"] for row in drawn))
        found.append(("`delta-stn`, as long as the whole search", alike))
    return [(name, some) for name, some in found if some]


def quality(record: Record) -> str:
    """The best run of each contender by validation loss, and the device-seconds of all its runs."""
    lines = []
    for name, rows in contenders(_rows(record, "quality")):
        best = best_of(rows)
        seconds = sum(row["figures"]["device_seconds"] for row in rows)
        losses = [f"{best[key]:.4f}" for key in ("valid_loss", "test_loss")]
        lines.append([name, str(len(rows)), f"{seconds:.1f}", *losses, f"{100 * best['test_accuracy']:.2f} %"])
    images = {row["figures"].get("images") for row in _rows(record, "quality")} - {None}
    heads = ["contender", "runs", "device-seconds", "validation loss", "test loss", "test accuracy"]
    return f"Images: {', '.join(sorted(images))}.\n\n" + grid(heads, lines)


def _gains(rows: Rows) -> str:
    shown = [row for row in rows if row["way"] != "single"]
    shown.sort(key=lambda row: row["runs"])
    lines = [[str(row["runs"]), row["way"], f"{row['gain']:.2f}", f"{row['cpu']:.2f}"] for row in shown]
    return grid(["runs", "way", "train steps per second", "CPU time per step"], lines, left=2)


def streams(record: Record) -> str:
    """Train steps per second and CPU time per step of several runs, relative to those of one run, on a GPU."""
    return _gains([row for part in _rows(record, "streams") for row in part["figures"].get("rows", [])])


def together(record: Record) -> str:
    """The same on a CPU."""
    return f"{record['cores']} cores.\n\n" + _gains(record["rows"])


TABLES = {
    "gpu-checks": Table(checks, ("gpu.json",), NO_RECORD),
    "gpu-cost": Table(costs, ("gpu.json",), NO_RECORD),
    "gpu-quality": Table(quality, ("gpu.json",), NO_RECORD),
    "gpu-streams": Table(streams, ("gpu.json",), NO_RECORD),
    "streams": Table(together, ("streams.json",)),
}
