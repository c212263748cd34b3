"""How a result depends on an option: Figures 14 (initial values), 15 (perturbation scale) and 16 (update intervals).

    python -m benchmarks.images_sweep DIR --option perturbation_scale --json FILE --plot FILE.png --schedules FILE.png

The command reads the finished records of `benchmarks.images` in a folder. Runs with the same method and the same value
of the option are seeds of one setting. A dot names an option inside another option (`initial_values.dropout0`). Commas
separate several options (`train_interval,valid_interval`). If a run does not set an option, the default of `Settings`
counts. The paper's figures use a fixed σ: run with `--set tune_scale=false`.

`--plot` draws the best validation loss, and the test loss at that epoch, against the option: a line through the means
and one point per run. `--schedules` draws the hyperparameters over epochs: one row per method, one colour per value.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common.arguments import prepare, several
from benchmarks.common.record import write
from benchmarks.images_report import cell, load, summarise
from ray_deltastn.training.columns import VALUES
from ray_deltastn.training.settings import Settings

LOSSES = {"best_valid_loss": "best validation loss", "test_loss_there": "test loss at the best epoch"}
#: Options that take the value of another option if they are not set.
FOLLOWS = {
    "valid_batch_size": "batch_size",
    "response_lr": "response_rate",
    "response_optimizer": "optimizer",
    "scale_lr": "hyper_lr",
}


def option_of(config: Mapping[str, Any], name: str) -> Any:
    """Value of an option in a run's configuration, or its default in `Settings`.

    Raises:
        ValueError: if the option has no value, or the value is not a single number or name.
    """
    first, *inside = name.split(".")
    # Older records name no preset. Their runs were of the paper's.
    settings = Settings(**{"preset": "paper", **{k: v for k, v in config.items() if k in Settings.names()}})
    value: Any = getattr(settings, first) if first in Settings.names() else config.get(first)
    if value is None and first in Settings.names():
        value = getattr(settings, FOLLOWS[first]) if first in FOLLOWS else "none"
    for part in inside:
        value = value.get(part) if isinstance(value, Mapping) else None
    if not isinstance(value, int | float | str):
        raise ValueError(
            f"the value of `--option` must be a number or a name in every run, got {name!r} with {value!r} in "
            f"{config['method']!r}, seed {config['seed']}"
        )
    return value


def sweep(records: Sequence[dict[str, Any]], options: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per method and value of the options, sorted by method and value.

    Args:
        records: records of `benchmarks.images`.
        options: names of the options; if there are several, the value of an entry is a list.

    Raises:
        ValueError: if a run has no such option, the runs have different tasks, or the runs of one setting differ in
            more than their seed.
    """
    tasks = {record["config"]["task"] for record in records}
    if len(tasks) > 1:
        raise ValueError(f"all runs must have the same task, got {', '.join(sorted(tasks))}")
    settings: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for record in records:
        values = tuple(option_of(record["config"], name) for name in options)
        settings.setdefault((record["config"]["method"], values), []).append(record)
    found = []
    for (method, values), runs in settings.items():
        _require_seeds(runs, f"{method}, {', '.join(options)} {text(list(values))}")
        (entry,) = summarise([{**run, "label": method} for run in runs])
        del entry["label"]
        for run in entry["runs"]:
            run["curve"] = {k: v for k, v in run["curve"].items() if k == "epoch" or k in VALUES}
        found.append({"method": method, "value": values[0] if len(values) == 1 else list(values), **entry})
    return sorted(found, key=lambda entry: (entry["method"], _order(entry["value"])))


def _require_seeds(runs: Sequence[dict[str, Any]], setting: str) -> None:
    """Raise ValueError unless the runs differ only in their seed."""
    first, *others = [{k: v for k, v in run["config"].items() if k not in ("seed", "data_root")} for run in runs]
    different = sorted({key for other in others for key in first | other if first.get(key) != other.get(key)})
    seeds = [run["config"]["seed"] for run in runs]
    if different or len(set(seeds)) < len(seeds):
        got = f"different values of {', '.join(different)}" if different else f"the seeds {sorted(seeds)}"
        raise ValueError(f"runs of one setting must differ in their seed only, got {got} in {setting}")


def table(entries: Sequence[Mapping[str, Any]], options: Sequence[str]) -> str:
    """The entries as a Markdown table."""
    lines = [f"| method | {', '.join(options)} | n | {' | '.join(LOSSES.values())} |", "|---|---|---|---|---|"]
    for entry in entries:
        cells = " | ".join(cell(entry[key], 4) for key in LOSSES)
        lines.append(f"| {entry['method']} | {text(entry['value'])} | {entry['n']} | {cells} |")
    return "\n".join(lines)


def text(value: Any) -> str:
    """One value, or a list of values, as text."""
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _order(value: Any) -> Any:
    """Sort key: numbers come before names."""
    return [(isinstance(v, str), v) for v in (value if isinstance(value, list) else [value])]


def _values(entries: Sequence[Mapping[str, Any]]) -> list[Any]:
    return sorted({_key(entry["value"]): entry["value"] for entry in entries}.values(), key=_order)


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _places(values: Sequence[Any]) -> tuple[list[float], bool]:
    """Position of each sorted value on the axis, and whether the axis is logarithmic."""
    side_by_side = [float(i) for i in range(len(values))]
    if not all(isinstance(v, int | float) for v in values):
        return side_by_side, False
    if values[0] > 0 and values[-1] >= 10 * values[0]:
        return [float(v) for v in values], True
    gaps = [after - before for before, after in pairwise(values)]
    even = not gaps or values[-1] - values[0] <= 12 * min(gaps)
    return ([float(v) for v in values] if even else side_by_side), False


def plot_losses(entries: Sequence[Mapping[str, Any]], options: Sequence[str], path: Path) -> None:
    """Draw the losses against the option, one line per method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    values = _values(entries)
    places, logarithmic = _places(values)
    place = {_key(value): at for value, at in zip(values, places, strict=True)}
    by_name = not all(isinstance(value, int | float) for value in values)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, (key, title) in zip(axes, LOSSES.items(), strict=True):
        for i, method in enumerate(dict.fromkeys(entry["method"] for entry in entries)):
            mine = [entry for entry in entries if entry["method"] == method]
            at = [place[_key(entry["value"])] for entry in mine]
            means = [math.nan if entry[key]["mean"] is None else entry[key]["mean"] for entry in mine]
            # A line joins numbers only, because names have no order.
            axis.plot(at, means, "o" if by_name else "-", color=f"C{i}", linewidth=1.6, label=method)
            for x, entry in zip(at, mine, strict=True):
                found = [run[key] for run in entry["runs"] if run[key] is not None]
                axis.plot([x] * len(found), found, "o", color=f"C{i}", ms=4, alpha=0.6)
        finite = [run[key] for entry in entries for run in entry["runs"] if run[key]]
        if finite and max(finite) > 10 * min(finite):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        if logarithmic:
            axis.set_xscale("log")
        axis.set_xticks(places, [text(v) for v in values])
        axis.minorticks_off()
        axis.set_xlabel(", ".join(options))
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    axes[0].legend(frameon=False)
    _save(figure, path)


def plot_schedules(
    entries: Sequence[Mapping[str, Any]], options: Sequence[str], logarithmic: Sequence[str], path: Path
) -> None:
    """Draw hyperparameters over epochs: one row per method, one column per hyperparameter, one thin line per run.

    Args:
        entries: entries from `sweep`.
        options: names of the options.
        logarithmic: hyperparameters with a logarithmic axis.
        path: file of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.lines import Line2D

    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    names = [key for key in entries[0]["runs"][0]["curve"] if key in VALUES]
    values = _values(entries)
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(values)))
    colour = {_key(value): shade for value, shade in zip(values, shades, strict=True)}
    # With one hyperparameter the methods are side by side.
    rows, columns = (1, len(methods)) if len(names) == 1 else (len(methods), len(names))
    size = (max(3.1 * columns, 6), 2.4 * rows + 0.8)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=size,
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True if len(names) == 1 else "col",
    )
    cells = [(method, name) for method in methods for name in names]
    for axis, (method, name) in zip(grid.flat, cells, strict=True):
        curves = [
            (entry["value"], run["curve"]["epoch"], [math.nan if v is None else v for v in run["curve"][name]])
            for entry in entries
            if entry["method"] == method
            for run in entry["runs"]
        ]
        for value, epochs, curve in curves:
            axis.plot(epochs, curve, color=colour[_key(value)], linewidth=1)
        short = name.removeprefix(VALUES.prefix)
        axis.set_title(f"{method}: {short}", fontsize=10)
        if short in logarithmic:
            axis.set_yscale("log")
        axis.set_xlabel("epoch")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    lines = [Line2D([], [], color=shade, label=text(value)) for value, shade in zip(values, shades, strict=True)]
    figure.legend(
        handles=lines, title=", ".join(options), loc="outside lower center", ncols=min(len(lines), 8), frameon=False
    )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write the record and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder with the records")
    parser.add_argument("--option", type=several(str), required=True, help="the option that varies, or several")
    parser.add_argument("--json", type=Path, help="file for the record")
    parser.add_argument("--plot", type=Path, help="file for the picture of the losses")
    parser.add_argument("--schedules", type=Path, help="file for the picture of the hyperparameters")
    parser.add_argument(
        "--log", type=several(str), default=[], help="hyperparameters with a logarithmic axis in that picture"
    )
    options = parser.parse_args(arguments)
    try:
        records, unfinished = load(options.folder)
        entries = sweep(records, options.option)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    prepare(parser, options.json, options.plot, options.schedules)
    print(table(entries, options.option))
    for name in unfinished:
        print(f"left out because it is not finished: {name}")
    if options.json:
        write(options.json, entries)
    if options.plot:
        plot_losses(entries, options.option, options.plot)
    if options.schedules:
        plot_schedules(entries, options.option, options.log, options.schedules)


if __name__ == "__main__":
    main()
