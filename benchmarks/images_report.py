"""Tables and pictures from the records of `benchmarks.images`, and a small record to commit.

    python -m benchmarks.images_report DIR --json FILE --plot FOLDER

All records in the folder with the same label are seeds of one setting. Unfinished runs are left out, and their files
are listed. Diverged runs are included, with infinite losses.

- `best validation loss`: lowest over the epochs. `at the best epoch`: at the epoch with this loss.
- `final`: after the last epoch. Table 1 has these losses, Table 3 these accuracies.
- `seconds`: time of train and hyper steps, without evaluation. Compare it only between runs that shared the machine in
  the same way.

The table shows the mean ± standard deviation over the seeds (n − 1 in the denominator).

Runs of `--draw` are trials of a random search. The runs of one seed are one search. For each search the run with the
best validation loss counts, under `random-best-of-K`. `--against LABEL` prints the difference of each setting to the
setting LABEL, paired by seed, with its standard error.

`--first N` reads all runs after N epochs. This gives the result of the same run at several lengths, if its settings do
not depend on the number of epochs. The settings of `preset: paper` do not.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.arguments import prepare, whole
from benchmarks.common.record import rounded, spread
from ray_deltastn.training.columns import SECONDS, VALUES

POINTS = 60
#: Keys that an entry copies from its first record, if they exist.
KEPT = ("schedule_of", "schedule_form", "schedule_sha256", "first_epochs", "captured")
#: Columns for which differences between settings are computed.
DIFFERENCES = ("best_valid_loss", "final_valid_loss", "test_loss_there")
COLUMNS = {
    "best_valid_loss": "best validation loss",
    "test_loss_there": "test loss at the best epoch",
    "valid_accuracy_there": "validation accuracy at the best epoch",
    "test_accuracy_there": "test accuracy at the best epoch",
    "final_valid_loss": "final validation loss",
    "final_test_loss": "final test loss",
    "final_valid_accuracy": "final validation accuracy",
    "final_test_accuracy": "final test accuracy",
    "seconds": "seconds",
}


def load(folder: Path, first: int | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Finished records of a folder, and the file names of unfinished records.

    Args:
        folder: folder of the records.
        first: number of epochs after which a run counts as finished; later reports are ignored. None for all epochs.

    Raises:
        FileNotFoundError: if there are no finished records.
    """
    records = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*-s*.json"))}
    for record in records.values() if first is not None else ():
        # An epoch may have several reports. The first report that counts the epoch is the one at its end.
        within = [point["epoch"] < (first or 0) for point in record["curve"]]
        record["done"] |= not all(within)
        record["curve"] = record["curve"][: sum(within) + 1]
        record["first_epochs"] = first
    finished = [record for record in records.values() if record["done"]]
    if not finished:
        raise FileNotFoundError(f"`{folder}` must contain finished records of `benchmarks.images`, got none")
    return finished, [path.name for path, record in records.items() if not record["done"]]


def searches(records: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The best run of each complete random search, and all other records.

    Searches with fewer runs than the longest search are left out. The draws of a search are listed by their number.
    """
    drawn: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if record["label"].startswith("random-"):
            drawn.setdefault(record["config"]["seed"], []).append(record)
    for runs in drawn.values():
        runs.sort(key=lambda run: int(run["label"].removeprefix("random-")))
    most = max(map(len, drawn.values()), default=0)
    best: list[dict[str, Any]] = [
        {
            **_best(runs),
            "label": f"random-best-of-{most}",
            "drawn": [rounded(outcome(run)["best_valid_loss"], 4) for run in runs],
        }
        for runs in drawn.values()
        if len(runs) == most
    ]
    return best, [record for record in records if not record["label"].startswith("random-")]


def _best(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return min(runs, key=lambda run: outcome(run)["best_valid_loss"])


def paired(entries: Sequence[Mapping[str, Any]], against: str) -> list[str]:
    """One line per setting: mean difference to the setting `against` over their common seeds, ± its standard error.

    Raises:
        ValueError: if `against` is not a setting.
    """
    by_label = {entry["label"]: {run["seed"]: run for run in entry["runs"]} for entry in entries}
    if against not in by_label:
        raise ValueError(f"`--against` must be one of {', '.join(by_label)}, got {against!r}")
    lines = []
    for label in by_label:
        found = {key: difference(by_label[label], by_label[against], key) for key in DIFFERENCES}
        seeds = found["best_valid_loss"][2]
        if label == against or seeds < 2:
            continue
        texts = [f"{COLUMNS[key]} {mean:+.4f} ± {error:.4f}" for key, (mean, error, _) in found.items()]
        lines.append(f"{label} − {against}, {seeds} seeds: " + ", ".join(texts))
    return lines


def difference(
    runs: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]], column: str
) -> tuple[float, float, int]:
    """Mean difference of a column over the common seeds of two settings, its standard error, and the number of seeds.

    Args:
        runs: runs by seed.
        others: runs by seed, which are subtracted.
        column: key of a run.
    """
    seeds = sorted(runs.keys() & others.keys())
    if not seeds:
        return math.nan, math.nan, 0
    found = spread([runs[seed][column] - others[seed][column] for seed in seeds])
    mean = math.nan if found["mean"] is None else found["mean"]
    return mean, (found["std"] or 0.0) / math.sqrt(len(seeds)), len(seeds)


def outcome(record: Mapping[str, Any]) -> dict[str, float]:
    """Losses, accuracies, seconds and best epoch of one run."""

    def loss(point: Mapping[str, Any], key: str) -> float:
        return math.inf if point.get(key) is None else float(point[key])

    def accuracy(point: Mapping[str, Any], key: str) -> float:
        return math.nan if point.get(key) is None else float(point[key])

    curve = record["curve"]
    best, last = min(curve, key=lambda point: loss(point, "valid_loss")), curve[-1]
    return {
        "best_valid_loss": loss(best, "valid_loss"),
        "test_loss_there": loss(best, "test_loss"),
        "valid_accuracy_there": accuracy(best, "valid_accuracy"),
        "test_accuracy_there": accuracy(best, "test_accuracy"),
        "final_valid_loss": loss(last, "valid_loss"),
        "final_test_loss": loss(last, "test_loss"),
        "final_valid_accuracy": accuracy(last, "valid_accuracy"),
        "final_test_accuracy": accuracy(last, "test_accuracy"),
        "seconds": last[SECONDS("train")] + last[SECONDS("hyper")],
        "best_epoch": best["epoch"],
    }


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per label: common keys of its runs, mean and standard deviation, and the thinned curve of each run."""
    best, others = searches(records)
    records = [*others, *best]
    entries: list[dict[str, Any]] = []
    for label in dict.fromkeys(record["label"] for record in records):
        mine = sorted((r for r in records if r["label"] == label), key=lambda record: record["config"]["seed"])
        outcomes = [outcome(record) for record in mine]
        config = {k: v for k, v in mine[0]["config"].items() if k not in ("seed", "data_root")}
        columns: dict[str, Any] = {key: spread([o[key] for o in outcomes]) for key in COLUMNS}
        runs = [_run(record, found) for record, found in zip(mine, outcomes, strict=True)]
        entries.append(
            {
                "label": label,
                "n": len(mine),
                "seeds": [record["config"]["seed"] for record in mine],
                "config": config,
                **{k: mine[0][k] for k in KEPT if k in mine[0]},
                **{k: mine[0][k] for k in ("hardware", "threads", "processor", "python", "torch", "ray_deltastn")},
                **columns,
                "runs": runs,
            }
        )
    return sorted(entries, key=lambda entry: _order(entry["best_valid_loss"]["mean"]))


def _run(record: Mapping[str, Any], found: dict[str, float]) -> dict[str, Any]:
    numbers: dict[str, Any] = rounded(found)
    return {"seed": record["config"]["seed"], **numbers, "curve": thin(record["curve"]), **_search(record)}


def _search(record: Mapping[str, Any]) -> dict[str, Any]:
    """Best losses of the runs of a random search, and the hyperparameters of its best run."""
    if "drawn" not in record:
        return {}
    return {"drawn": record["drawn"], "hyperparameters": rounded(record["config"]["hyperparameters"], 4)}


def thin(curve: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of a curve at up to `POINTS` evenly spaced epochs with the last one; the best loss is over all epochs."""
    kept = {round((i + 1) * len(curve) / min(POINTS, len(curve))) - 1 for i in range(min(POINTS, len(curve)))}
    best, bests = math.inf, []
    for point in curve:
        best = min(best, math.inf if point["valid_loss"] is None else point["valid_loss"])
        bests.append(best)
    names = [k for k in curve[0] if k in ("epoch", "valid_loss", "test_loss", "response_size") or k in VALUES]
    columns = {name: rounded([curve[i].get(name) for i in sorted(kept)], 4) for name in names}
    return {**columns, "best_valid_loss": rounded([bests[i] for i in sorted(kept)], 4)}


def _order(value: float | None) -> float:
    return math.inf if value is None else value


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The entries as a Markdown table, with the best setting first."""
    lines = ["| setting | n | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for entry in entries:
        cells = [
            "–" if "accuracy" in key and entry[key]["mean"] is None else cell(entry[key], 0 if key == "seconds" else 4)
            for key in COLUMNS
        ]
        lines.append(f"| {entry['label']} | {entry['n']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(found: Mapping[str, float | None], digits: int) -> str:
    """Mean ± standard deviation as text."""
    if found["mean"] is None:
        return "diverged"
    return f"{found['mean']:.{digits}f}" + ("" if found["std"] is None else f" ± {found['std']:.{digits}f}")


def plot(entries: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw `loss.png` (best validation loss by epoch) and `schedules.png` (hyperparameters that move).

    A band is the mean ± standard deviation over the seeds. A run that ended earlier is a separate dotted line.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    colours = {entry["label"]: f"C{i % 10}" for i, entry in enumerate(entries)}

    def bands(axis: Any, entry: Mapping[str, Any], key: str) -> None:
        curves = [run["curve"] for run in entry["runs"]]
        epochs = max((curve["epoch"] for curve in curves), key=lambda found: found[-1])
        for curve in curves:
            if curve["epoch"] != epochs:
                axis.plot(curve["epoch"], np.array(curve[key], float), ":", color=colours[entry["label"]], linewidth=1)
        values = np.array([curve[key] for curve in curves if curve["epoch"] == epochs], float)
        middle = values.mean(0)
        axis.plot(epochs, middle, color=colours[entry["label"]], linewidth=1.6, label=entry["label"])
        if len(values) > 1:
            around = values.std(0, ddof=1)
            axis.fill_between(
                epochs, middle - around, middle + around, color=colours[entry["label"]], alpha=0.15, linewidth=0
            )

    def style(axis: Any) -> None:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
        axis.set_xlabel("epoch")

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, key, title in zip(
        axes, ("best_valid_loss", "test_loss"), ("best validation loss so far", "test loss"), strict=True
    ):
        for entry in entries:
            bands(axis, entry, key)
        ends = [v for entry in entries for run in entry["runs"] for v in run["curve"][key] if v is not None]
        finite = sorted(v for v in ends if math.isfinite(v))
        axis.set_ylim(finite[0] * 0.97, np.quantile(finite, 0.9))
        axis.set_title(title)
        style(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    paths = [folder / "loss.png"]
    figure.savefig(paths[0], dpi=130)
    plt.close(figure)

    moving = [entry for entry in entries if _moves(entry)]
    if moving:
        names = [key for key in moving[0]["runs"][0]["curve"] if key in VALUES]
        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        figure, grid = plt.subplots(
            rows, columns, figsize=(3.7 * columns, 2.5 * rows + 0.5), layout="constrained", squeeze=False, sharex=True
        )
        for axis, name in zip(grid.flat, names, strict=False):
            for entry in moving:
                bands(axis, entry, name)
            axis.set_title(name.partition("/")[2], fontsize=10)
            style(axis)
        for axis in list(grid.flat)[len(names) :]:
            axis.set_visible(False)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
        paths.append(folder / "schedules.png")
        figure.savefig(paths[1], dpi=130)
        plt.close(figure)
    return paths


def _moves(entry: Mapping[str, Any]) -> bool:
    curve = entry["runs"][0]["curve"]
    return any(len(set(values)) > 1 for key, values in curve.items() if key in VALUES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write the record and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder with the records")
    parser.add_argument("--against", metavar="LABEL", help="print the paired differences to this setting")
    parser.add_argument(
        "--first", type=whole(), metavar="N", help="use the first N epochs of each run, also of unfinished runs"
    )
    parser.add_argument("--json", type=Path, help="file for the record")
    parser.add_argument("--plot", type=Path, help="folder for the pictures")
    options = parser.parse_args(arguments)
    try:
        records, unfinished = load(options.folder, options.first)
    except FileNotFoundError as error:
        parser.error(str(error))
    prepare(parser, options.json)
    entries = summarise(records)
    print(table(entries))
    if options.against:
        try:
            print("\n".join(paired(entries, options.against)))
        except ValueError as error:
            parser.error(str(error))
    for name in unfinished:
        print(f"left out because it is not finished: {name}")
    if options.json:
        options.json.write_text(json.dumps(entries, separators=(",", ":"), allow_nan=False) + "\n")
    if options.plot:
        print("\n".join(str(path) for path in plot(entries, options.plot)))


if __name__ == "__main__":
    main()
