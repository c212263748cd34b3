"""How a result depends on an option: Figures 14 (initial values), 15 (perturbation scale) and 16 (update intervals).

    python -m benchmarks.images_sweep DIR --option perturbation_scale --json FILE --plot FILE.png --schedules FILE.png

Reads the finished records of `benchmarks.images` in a folder. Runs that agree in method and option are seeds of one
setting. An option inside another is named with a dot (`initial_values.dropout0`); several options are parted by commas
(`train_interval,valid_interval`). An option that a run was not given has the default of `Settings`.

`--plot` draws the best validation loss, and the test loss at that epoch, against the option, a line through the means
and a point per run. `--schedules` draws the hyperparameters over epochs, a row per method and a colour per value.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import prepare, several
from benchmarks.images_report import cell, load, summarise
from benchmarks.record import write
from ray_deltastn.settings import Settings

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}
LOSSES = {"best_valid_loss": "best validation loss", "test_loss_there": "test loss there"}
PREFIX = "hyperparameters/"


def option_of(config: Mapping[str, Any], name: str) -> Any:
    """Value of an option in a run's configuration, or its default.

    Raises:
        ValueError: if there is neither.
    """
    value: Any = {**DEFAULTS, **config}
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"`--option` must be an option of every run or of `Settings`, got {name!r}")
        value = value[part]
    return value


def sweep(records: Sequence[dict[str, Any]], options: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per method and value of the options, sorted by them.

    Args:
        records: those of `benchmarks.images`.
        options: their names; the value of several is a list.

    Raises:
        ValueError: if a run has no such option.
    """
    named = []
    for record in records:
        config = record["config"]
        values = [option_of(config, name) for name in options]
        value = values[0] if len(values) == 1 else values
        named.append({**record, "label": f"{config['method']} {value}", "value": value})
    values_of = {record["label"]: record["value"] for record in named}
    entries = [
        {"method": entry["config"]["method"], "value": values_of[entry.pop("label")], **entry}
        for entry in summarise(named)
    ]
    for run in (run for entry in entries for run in entry["runs"]):
        run["curve"] = {k: v for k, v in run["curve"].items() if k == "epoch" or k.startswith(PREFIX)}
    return sorted(entries, key=lambda entry: (entry["method"], entry["value"]))


def table(entries: Sequence[Mapping[str, Any]], options: Sequence[str]) -> str:
    """Markdown table."""
    lines = [f"| method | {', '.join(options)} | n | {' | '.join(LOSSES.values())} |", "|---|---|---|---|---|"]
    for entry in entries:
        cells = " | ".join(cell(entry[key], 4) for key in LOSSES)
        lines.append(f"| {entry['method']} | {text(entry['value'])} | {entry['n']} | {cells} |")
    return "\n".join(lines)


def text(value: Any) -> str:
    """A value, or several, as text."""
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _places(entries: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[Any], bool]:
    """Place of each distinct value on the axis, the values, and whether the axis is logarithmic."""
    values = sorted({_key(entry["value"]) for entry in entries})
    if not all(isinstance(v, int | float) for v in values):
        return [float(i) for i in range(len(values))], values, False
    return [float(v) for v in values], values, values[0] > 0 and values[-1] >= 10 * values[0]


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def plot_losses(entries: Sequence[Mapping[str, Any]], options: Sequence[str], path: Path) -> None:
    """Draw the losses against the option, a line per method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    places, values, logarithmic = _places(entries)
    place = dict(zip(values, places, strict=True))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for axis, (key, title) in zip(axes, LOSSES.items(), strict=True):
        for i, method in enumerate(dict.fromkeys(entry["method"] for entry in entries)):
            mine = [entry for entry in entries if entry["method"] == method]
            at = [place[_key(entry["value"])] for entry in mine]
            means = [math.nan if entry[key]["mean"] is None else entry[key]["mean"] for entry in mine]
            axis.plot(at, means, color=f"C{i}", linewidth=1.6, label=method)
            for x, entry in zip(at, mine, strict=True):
                found = [run[key] for run in entry["runs"] if run[key] is not None]
                axis.plot([x] * len(found), found, "o", color=f"C{i}", ms=4, alpha=0.6)
        if logarithmic:
            axis.set_xscale("log")
        axis.set_xticks(places, [text(list(v) if isinstance(v, tuple) else v) for v in values])
        axis.minorticks_off()
        axis.set_xlabel(", ".join(options))
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    axes[0].legend(frameon=False)
    _save(figure, path)


def plot_schedules(entries: Sequence[Mapping[str, Any]], options: Sequence[str], path: Path) -> None:
    """Draw hyperparameters over epochs, a row per method, a column per hyperparameter, a thin line per run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    names = [key for key in entries[0]["runs"][0]["curve"] if key.startswith(PREFIX)]
    _, values, _ = _places(entries)
    colour = dict(zip(values, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(values))), strict=True))
    # One hyperparameter: methods side by side.
    rows, columns = (1, len(methods)) if len(names) == 1 else (len(methods), len(names))
    size = (max(3.1 * columns, 6), 2.4 * rows + 0.8)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True)
    cells = [(method, name) for method in methods for name in names]
    for axis, (method, name) in zip(grid.flat, cells, strict=True):
        for entry in (entry for entry in entries if entry["method"] == method):
            for i, run in enumerate(entry["runs"]):
                label = text(entry["value"]) if i == 0 else None
                axis.plot(run["curve"]["epoch"], run["curve"][name], color=colour[_key(entry["value"])], lw=1,
                          label=label)  # fmt: skip
        short = name.removeprefix(PREFIX)
        axis.set_title(f"{method}: {short}", fontsize=10)
        if all(v > 0 for e in entries for r in e["runs"] for v in r["curve"][name]) and "decay" in short:
            axis.set_yscale("log")
        axis.set_xlabel("epoch")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    handles, labels = next(axis.get_legend_handles_labels() for axis in grid.flat)
    figure.legend(handles, labels, title=", ".join(options), loc="outside right center", frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; write the record and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder of records")
    parser.add_argument("--option", type=several(str), required=True, help="option or options that vary")
    parser.add_argument("--json", type=Path, help="file for the record")
    parser.add_argument("--plot", type=Path, help="file for the picture of the losses")
    parser.add_argument("--schedules", type=Path, help="file for the picture of the hyperparameters")
    options = parser.parse_args(arguments)
    try:
        records, unfinished = load(options.folder)
        entries = sweep(records, options.option)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json, options.plot, options.schedules)
    print(table(entries, options.option))
    for name in unfinished:
        print(f"left out, not finished: {name}")
    if options.json:
        write(options.json, entries)
    if options.plot:
        plot_losses(entries, options.option, options.plot)
    if options.schedules:
        plot_schedules(entries, options.option, options.schedules)


if __name__ == "__main__":
    main()
