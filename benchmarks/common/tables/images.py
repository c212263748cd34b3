"""Tables of image runs: FashionMNIST with 10,000 images, in runs of 24, 30 and up to 300 epochs.

A record is a list of settings. Each setting has the mean and the standard deviation of its outcomes, and its runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.markdown import MISSING, around, fixed, grid
from benchmarks.common.pages import Table
from benchmarks.images_report import COLUMNS, DIFFERENCES, cell, difference

Entries = Sequence[Mapping[str, Any]]
LOSSES = ("best_valid_loss", "test_loss_there", "test_accuracy_there", "final_valid_loss", "final_test_loss")
#: Label of a setting → its name on the page.
THIRTY = {
    "delta-stn": "`delta-stn`, `preset: paper`",
    "delta-stn-fast": "`delta-stn`, `preset: fast`",
    "delta-stn-fast-independent": "`delta-stn`, `preset: fast`, `antithetic: false`",
    "delta-stn-quarter": "`delta-stn`, `preset: paper`, Θ on ¼",
    "stn": "`stn`",
    "centered-stn": "`centered-stn`",
    "fixed-quarter": "fixed, hidden dropout ¼",
    "fixed-half": "fixed, hidden dropout ½",
    "fixed-initial": "fixed, initial values",
    "fixed-none": "fixed, no regularisation",
}
SHORT = {
    "paper-auto": "`preset: paper`, `hyper_lr: auto`",
    "fast": "`preset: fast`",
    "fast-independent": "`preset: fast`, `antithetic: false`",
    "delta-paper": "`preset: paper`",
    "random-best-of-8": "best of 8 runs of random search",
    "delta-lr05": "Θ on all, `hyper_lr` 0.05",
    "delta-lr05-w12": "Θ on all, `hyper_lr` 0.05, warm-up 12",
    "fast-lr05-w12": "Θ on ¼, `hyper_lr` 0.05, warm-up 12",
    "fast-lr05": "Θ on ¼, `hyper_lr` 0.05",
    "fast-lr05-radam": "Θ on ¼, `hyper_lr` 0.05, Θ by Adam (0.001)",
}
#: Rows of the paper's Table 1 on FashionMNIST: final validation and test losses.
PAPER_TABLE_1 = ("0.196 (0.218)", "0.191 (0.212)", "0.189 (0.209)", "0.206 (0.214)", "0.217 (0.215)")


def outcomes(entries: Entries, names: Mapping[str, str], columns: Sequence[str]) -> str:
    """One row per setting, in the order of the entries: mean ± standard deviation over the seeds."""
    rows = [[names[e["label"]], f"{e['n']}", *(cell(e[column], 3) for column in columns)] for e in entries]
    return grid(["setting", "n", *(COLUMNS[column] for column in columns)], rows)


def apart(entries: Entries, names: Mapping[str, str], pairs: Sequence[tuple[str, str]]) -> str:
    """One row per pair of settings: mean difference ± standard error, paired by seed."""
    runs = {entry["label"]: {run["seed"]: run for run in entry["runs"]} for entry in entries}
    rows = []
    for one, other in pairs:
        found = [difference(runs[one], runs[other], column) for column in DIFFERENCES]
        rows.append([names[one], names[other], f"{found[0][2]}", *(around(m, error, 3) for m, error, _ in found)])
    return grid(["setting", "minus", "n", *(COLUMNS[column] for column in DIFFERENCES)], rows, left=2)


def thirty(entries: Entries) -> str:
    """All settings of the runs with 30 epochs."""
    return outcomes(entries, THIRTY, LOSSES)


def thirty_apart(entries: Entries) -> str:
    """Each setting with several seeds, minus the best constant."""
    settings = [e["label"] for e in entries if e["n"] > 1 and e["label"] != "fixed-quarter"]
    return apart(entries, THIRTY, [(label, "fixed-quarter") for label in settings])


def beside_the_paper(entries: Entries) -> str:
    """Final validation loss (test loss), and the paper's Table 1."""
    found = {entry["label"]: entry for entry in entries}
    ours = [
        " ".join((fixed(found[m]["final_valid_loss"]["mean"], 3), f"({found[m]['final_test_loss']['mean']:.3f})"))
        for m in ("stn", "centered-stn", "delta-stn")
    ]
    header = ["", "STN", "centred STN", "Δ-STN", "random search", "Bayesian"]
    rows = [["paper, Table 1", *PAPER_TABLE_1], ["here: a sixth of the data, 30 epochs", *ours, MISSING, MISSING]]
    return grid(header, rows)


def long(*records: Entries) -> str:
    """The same runs after several numbers of epochs, with one seed."""
    settings = {"delta-stn": "Δ-STN", "fixed-quarter": "constant ¼", "fixed-half": "constant ½"}
    columns = ("best_valid_loss", "test_loss_there", "final_test_loss")
    rows = []
    for entries in records:
        found = {entry["label"]: entry for entry in entries}
        epochs = entries[0].get("first_epochs", entries[0]["config"]["epochs"])
        for label in found:
            values = [cell(found[label][column], 3) for column in columns]
            rows.append([f"{epochs}", settings[label], *values])
    rows.sort(key=lambda row: (int(row[0]), list(settings.values()).index(row[1])))
    return grid(["epochs", "setting", *(COLUMNS[column] for column in columns)], rows, left=2)


def short(entries: Entries) -> str:
    """All settings of the runs with 24 epochs; settings with several seeds come first."""
    ordered = sorted(entries, key=lambda entry: (entry["n"] == 1, entry["best_valid_loss"]["mean"]))
    return outcomes(ordered, SHORT, (LOSSES[0], LOSSES[1], LOSSES[3]))


def short_apart(entries: Entries) -> str:
    """Differences between the settings with five seeds."""
    pairs = [(label, "random-best-of-8") for label in ("paper-auto", "fast", "delta-paper")]
    pairs += [("paper-auto", "delta-paper"), ("paper-auto", "fast"), ("fast", "delta-paper")]
    return apart(entries, SHORT, [*pairs, ("fast", "fast-independent")])


def short_seeds(entries: Entries) -> str:
    """Best validation loss of each seed."""
    found = {entry["label"]: entry for entry in entries if entry["n"] > 1}
    seeds = next(iter(found.values()))["seeds"]
    rows = [[SHORT[label], *(f"{run['best_valid_loss']:.3f}" for run in found[label]["runs"])] for label in found]
    return grid(["best validation loss", *(f"seed {seed}" for seed in seeds)], rows)


def scale(entries: Entries) -> str:
    """Losses by perturbation scale, for Δ-STN and STN."""
    found = {(entry["method"], entry["value"]): entry for entry in entries}
    methods = {"delta-stn": "Δ-STN", "stn": "STN"}
    header = [f"{name}: {COLUMNS[column]}" for name in methods.values() for column in LOSSES[:2]]
    rows = [
        [f"{value:g}", *(cell(found[method, value][column], 3) for method in methods for column in LOSSES[:2])]
        for value in sorted({value for _, value in found})
    ]
    return grid(["σ", *header], rows)


_LONG = tuple(f"images/fashion_10k_100_first_{epochs}.json" for epochs in (24, 48, 100))
TABLES = {
    "images-30": Table(thirty, ("images/fashion_10k.json",)),
    "images-30-differences": Table(thirty_apart, ("images/fashion_10k.json",)),
    "images-paper": Table(beside_the_paper, ("images/fashion_10k.json",)),
    "images-300": Table(long, (*_LONG, "images/fashion_10k_300.json")),
    "images-24": Table(short, ("images/fashion_10k_24.json",)),
    "images-24-differences": Table(short_apart, ("images/fashion_10k_24.json",)),
    "images-24-seeds": Table(short_seeds, ("images/fashion_10k_24.json",)),
    "images-scale": Table(scale, ("images/fashion/perturbation_scale.json",)),
}
