"""Tables of language models: self-tuned runs beside constants, random search and the paper's figures; their speed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks.common.markdown import MISSING, fixed, grid
from benchmarks.common.pages import Table

#: Contender → its name on the page.
NAMES = {
    "none": "no regularisation",
    "plain": "constants of others",
    "initial": "initial values as constants",
    "random": "random search, best of 8",
    "stn": "STN, the paper's settings",
    "centered-stn": "centred STN, the paper's settings",
    "delta-stn paper": "Δ-STN, the paper's settings",
    "delta-stn": "Δ-STN, `recommended`",
}
#: Contender → validation (test) perplexity in Table 1 of the paper.
PAPER = {
    "random": "84.81 (81.46)",
    "stn": "70.67 (67.78)",
    "centered-stn": "69.40 (66.67)",
    "delta-stn paper": "68.63 (66.26)",
}
#: Scores above this are of runs that learned nothing, and their digits say nothing.
MOST = 1000
RUNS = "language/runs.json"


def lstm(record: Mapping[str, Any], problem: str = "lstm") -> str:
    """Perplexities of an LSTM beside those of the paper."""
    heads = ["run", "n", "validation perplexity", "test perplexity", "CPU seconds", "paper: validation (test)"]
    lines = [[*line, PAPER.get(name, MISSING)] for name, line in _lines(record, problem, 1).items()]
    return grid(heads, lines)


def transformer(record: Mapping[str, Any], problem: str = "transformer") -> str:
    """Bits per character of a transformer."""
    heads = ["run", "n", "validation bits per character", "test bits per character", "CPU seconds"]
    return grid(heads, list(_lines(record, problem, 3).values()))


def _lines(record: Mapping[str, Any], problem: str, digits: int) -> dict[str, list[str]]:
    found = {row["contender"]: row for row in record["summary"] if row["problem"] == problem}
    return {
        name: [
            NAMES[name],
            str(found[name]["seeds"]),
            _cell(found[name]["valid"], digits),
            _cell(found[name]["test"], digits),
            f"{found[name]['seconds']['mean']:.0f}",
        ]
        for name in NAMES
        if name in found
    }


def _cell(score: Mapping[str, float | None], digits: int) -> str:
    if score["mean"] is not None and score["mean"] > MOST:
        return f"> {MOST}"
    mean = fixed(score["mean"], digits)
    return mean if score["std"] is None else f"{mean} ± {fixed(score['std'], digits)}"


def speed(record: Mapping[str, Any]) -> str:
    """CPU seconds of a train step."""
    lines = [[row["variant"], f"{1000 * row['seconds']:.0f}", f"{row['ratio']:.1f}"] for row in record["rows"]]
    return grid(["step", "CPU milliseconds", "ratio to plain training with the fused LSTM"], lines)


def flops(record: Mapping[str, Any]) -> str:
    """FLOPs of a cycle over those of plain training."""
    heads = [
        "network",
        "words",
        "units",
        "steps",
        "decoder",
        "train steps",
        *(NAMES[name] for name in record["rows"][0]["ratios"]),
    ]
    lines = [
        [
            row["name"],
            f"{row['words']:,}",
            str(row["units"]),
            str(row["length"]),
            "tied" if row["tied"] else "untied",
            str(row["train_interval"]),
            *(f"{ratio:.2f}" for ratio in row["ratios"].values()),
        ]
        for row in record["rows"]
    ]
    return grid(heads, lines)


TABLES = {
    "language-lstm-100k": Table(partial(lstm, problem="lstm-100k"), (RUNS,)),
    "language-lstm": Table(lstm, (RUNS,)),
    "language-transformer": Table(transformer, (RUNS,)),
    "language-transformer-300k": Table(partial(transformer, problem="transformer-300k"), (RUNS,)),
    "language-speed": Table(speed, ("language/speed.json",)),
    "language-flops": Table(flops, ("language/flops.json",)),
}
