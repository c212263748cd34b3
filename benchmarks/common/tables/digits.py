"""Tables of small runs on digits: one option at a time, and schedules against constants.

A dropout rate is called lost if it ends below `LOST`. There the sigmoid is so flat that the rate does not recover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import MISSING, between, grid
from benchmarks.common.pages import Table
from benchmarks.common.tables.images import LOSSES, apart
from benchmarks.images_report import COLUMNS, cell
from benchmarks.images_sweep import text
from ray_deltastn.training.columns import VALUES

Entries = Sequence[Mapping[str, Any]]
LOST = 0.005
#: Label of a setting → its name on the page, and the paper's row of Table 4: validation loss (test loss).
SCHEDULES = {
    "fixed-0.0": ("constant 0", ""),
    "fixed-0.1": ("constant 0.1", ""),
    "fixed-0.2": ("constant 0.2", ""),
    "fixed-0.3": ("constant 0.3", ""),
    "fixed-0.4": ("constant 0.4", ""),
    "fixed-0.5": ("constant 0.5", "0.059 (0.054)"),
    "fixed-0.4-noise": ("constant 0.4, perturbed", ""),
    "fixed-0.5-noise": ("constant 0.5, perturbed", "0.057 (0.059)"),
    "delta-stn-from-0.3": ("Δ-STN, from 0.3", "0.053 (0.054)"),
    "stn-from-0.3": ("STN, from 0.3", "0.058 (0.058)"),
    "delta-stn-from-0.05": ("Δ-STN, from 0.05", ""),
    "stn-from-0.05": ("STN, from 0.05", ""),
    "fixed-schedule": ("the schedule of Δ-STN from 0.05", ""),
    "fixed-final": ("its final value", "p = 0.43: 0.059 (0.060)"),
    "fixed-noise": ("its final value, perturbed", ""),
}
SHARES = {
    "paper": "`preset: paper`",
    "whole": "Θ on all",
    "half": "Θ on ½",
    "quarter": "Θ on ¼",
    "quarter-antithetic": "Θ on ¼, `antithetic` (`preset: fast`)",
    "eighth": "Θ on ⅛",
    "batch-16": "hyper batch 16, Θ on ¼",
    "batch-64": "hyper batch 64, Θ on ¼",
    "batch-359": "hyper batch 359, Θ on ¼",
}


def _ends(entry: Mapping[str, Any], name: str) -> list[float | None]:
    """Last value of a hyperparameter in each run; None if the run diverged."""
    curves = [run["curve"] for run in entry["runs"]]
    return [c[VALUES(name)][-1] if c["epoch"][-1] == entry["config"]["epochs"] else None for c in curves]


def _lost(ends: Sequence[float | None]) -> str:
    """Number of runs whose rate lost, and number of runs that did not diverge."""
    known = [end for end in ends if end is not None]
    return f"{sum(end < LOST for end in known)} of {len(known)}" if known else MISSING


def _fate(entry: Mapping[str, Any]) -> list[str]:
    """Cells of a row: runs whose rate is lost, the rate at the end, and the losses."""
    ends = _ends(entry, "dropout0")
    shown = ", ".join("diverged" if end is None else f"{end:.3f}" for end in ends)
    return [_lost(ends), shown, *(cell(entry[column], 3) for column in LOSSES[:2])]


FATE = ("rate lost", "rate at the end, by seed", *(COLUMNS[column] for column in LOSSES[:2]))


def one_rate(option: str) -> Any:
    """Table function with one row per value of an option: the dropout rate at the end, and the losses."""

    def table(entries: Entries) -> str:
        rows = [[f"`{entry['method']}`", text(entry["value"]), *_fate(entry)] for entry in entries]
        return grid(["method", option, *FATE], rows, left=2)

    return table


def several_options(*names: str) -> Any:
    """Table function with one row per value of some options and σ: the dropout rate at the end, and the losses."""

    def table(entries: Entries) -> str:
        rows = []
        for entry in entries:
            *values, scale = entry["value"]
            given = [f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in values]
            rows.append([*given, text(scale), *_fate(entry)])
        return grid([*(f"`{name}`" for name in names), "σ", *FATE], rows, left=len(names) + 1)

    return table


def warm_ups(fixed_scale: Entries, tuned: Entries) -> str:
    """Runs with a long and a short warm-up, with σ fixed and tuned."""
    rows = []
    for scale, entries in (("fixed at 1", fixed_scale), ("tuned", tuned)):
        for entry in entries:
            ends = _ends(entry, "dropout0")
            losses = [cell(entry[column], 3) for column in LOSSES[:2]]
            steps = "five epochs (85 steps)" if entry["value"] == "none" else f"{entry['value']} steps"
            rows.append([scale, steps, _lost(ends), between([e for e in ends if e is not None], 3), *losses])
    heads = ["σ", "warm-up", "rate lost", "rate at the end", *(COLUMNS[column] for column in LOSSES[:2])]
    return grid(heads, rows, left=2)


def schedules(entries: Entries) -> str:
    """Constants, self-tuned runs and runs that follow a schedule, compared with the paper's Table 4."""
    found = {entry["label"]: entry for entry in entries}
    rows = [
        [name, *(cell(found[label][column], 3) for column in LOSSES[:2]), paper or MISSING]
        for label, (name, paper) in SCHEDULES.items()
    ]
    return grid(["setting", *(COLUMNS[c] for c in LOSSES[:2]), "paper, MNIST: validation (test)"], rows)


def shares(*records: Entries) -> str:
    """Losses and final input dropout, by the share of the minibatch that trains Θ and by hyper batch size."""
    found = {entry["label"]: entry for entries in records for entry in entries}
    columns = (LOSSES[0], LOSSES[1], LOSSES[3], LOSSES[4])
    rows = []
    for label, name in SHARES.items():
        ends = _ends(found[label], "input_dropout")
        risen = f"{sum(end is not None and end > 0.05 for end in ends)} of {len(ends)}"
        losses = [cell(found[label][column], 3) for column in columns]
        rows.append([name, f"{found[label]['n']}", *losses, risen, _lost(ends)])
    heads = ["setting", "n", *(COLUMNS[column] for column in columns), "input dropout risen", "input dropout lost"]
    return grid(heads, rows)


def shares_apart(*records: Entries) -> str:
    """Differences between shares, paired by seed."""
    pairs = [("quarter", "whole"), ("quarter-antithetic", "whole"), ("quarter-antithetic", "paper")]
    pairs += [("whole", "paper"), ("batch-359", "batch-64")]
    return apart([entry for entries in records for entry in entries], SHARES, pairs)


_SHARES = ("images/digits/response_share.json", "images/digits/hyper_batch.json")
TABLES = {
    "digits-initial": Table(one_rate("initial rate"), ("images/digits/initial_values.json",)),
    "digits-warmup": Table(warm_ups, ("images/digits/warmup.json", "images/digits/warmup_tuned.json")),
    "digits-schedules": Table(schedules, ("images/digits/schedules.json",)),
    "digits-scale": Table(one_rate("σ"), ("images/digits/perturbation_scale.json",)),
    "digits-recommended-initial": Table(one_rate("initial rate"), ("images/digits/recommended_initial_values.json",)),
    "digits-recommended-scale": Table(
        several_options("hyper_pass"), ("images/digits/recommended_perturbation_scale.json",)
    ),
    "digits-recommended-constant": Table(one_rate("σ"), ("images/digits/recommended_constant_rate.json",)),
    "digits-recommended-rmsprop": Table(
        several_options("response_optimizer", "antithetic"), ("images/digits/recommended_rmsprop.json",)
    ),
    "digits-recommended-intervals": Table(
        one_rate("train steps, hyper steps"), ("images/digits/recommended_intervals.json",)
    ),
    "digits-intervals": Table(one_rate("train steps, hyper steps"), ("images/digits/intervals.json",)),
    "digits-entropy": Table(one_rate("entropy weight"), ("images/digits/entropy.json",)),
    "digits-shares": Table(shares, _SHARES),
    "digits-shares-differences": Table(shares_apart, _SHARES),
}
