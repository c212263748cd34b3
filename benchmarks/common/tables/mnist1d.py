"""Tables of runs on MNIST-1D: how Θ blows up, and self-tuned runs against random search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import MISSING, grid
from benchmarks.common.pages import Table
from benchmarks.common.tables.images import LOSSES
from benchmarks.images_report import COLUMNS, cell

Entries = Sequence[Mapping[str, Any]]
#: Label of a setting → its name on the page.
BLOW_UPS = {
    "whole": "whole minibatch",
    "quarter-full-rate": "¼, `response_lr` 0.05 = `lr`",
    "quarter-pairs-full-rate": "¼ in pairs, `response_lr` 0.05 = `lr`",
    "whole-four-times-the-rate": "whole minibatch, `response_lr` 0.2",
    "whole-recommended": "`recommended` with SGD for Θ, whole minibatch",
    "quarter-recommended": "the same, ¼",
    "whole-four-times-the-rate-recommended": "the same, whole minibatch, `response_lr` 0.2",
    "whole-rmsprop": "`recommended`, whole minibatch",
    "quarter-rmsprop": "`recommended`, ¼",
    "whole-four-times-the-rate-rmsprop": "`recommended`, whole minibatch, `response_lr` 0.004",
}
RUNS = {
    "plain": "plain, initial values",
    "random-best-of-12": "random search, best of 12",
    "fast": "the former `preset: fast`",
    "paper": "`preset: paper`",
    "paper-0.04": "`preset: paper`, `hyper_lr` 0.04",
    "line-0.04": "`recommended` with SGD for Θ, `hyper_lr` 0.04, `hyper_decay` 1",
    "recommended": "`recommended` with SGD for Θ",
    "recommended-quarter": "the same, Θ on ¼",
    "rmsprop": "`recommended`",
    "rmsprop-quarter": "`recommended`, Θ on ¼",
    "stn-recommended": "STN, `recommended`",
}


def blow_ups(entries: Entries) -> str:
    """The size of the response over the epochs, and its largest value."""
    found = {entry["label"]: entry for entry in entries}
    marks = (10, 50, 100, 150, 200)
    rows = []
    for label, name in BLOW_UPS.items():
        (run,) = found[label]["runs"]
        sizes = [math.inf if v is None else v for v in run["curve"]["response_size"]]
        by_epoch = dict(zip(run["curve"]["epoch"], sizes, strict=True))
        near = [by_epoch[min(by_epoch, key=lambda epoch: abs(epoch - mark))] for mark in marks]
        rows.append([name, *(f"{size:.3g}" for size in (*near, max(sizes)))])
    return grid(["Θ trained on", *(f"epoch {mark}" for mark in marks), "largest"], rows)


def runs(entries: Entries) -> str:
    """Losses of each setting, and the seconds of a run."""
    found = {entry["label"]: entry for entry in entries}
    columns = (LOSSES[0], LOSSES[1], LOSSES[3], LOSSES[4])
    rows = []
    for label, name in RUNS.items():
        each = ", ".join(f"{run['best_valid_loss']:.3f}" for run in found[label]["runs"])
        rows.append([name, each, *(cell(found[label][column], 3) for column in columns[1:]), _seconds(found[label])])
    heads = ["run", "best validation loss, by seed", *(COLUMNS[column] for column in columns[1:]), "seconds"]
    return grid(heads, rows)


def _seconds(entry: Mapping[str, Any]) -> str:
    return MISSING if entry["label"].startswith("random") else f"{entry['seconds']['mean']:.0f}"


TABLES = {
    "mnist1d-blow-up": Table(blow_ups, ("images/mnist1d/blow_up.json",)),
    "mnist1d-runs": Table(runs, ("images/mnist1d/runs.json",)),
}
