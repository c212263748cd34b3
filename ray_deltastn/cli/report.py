"""`ray-deltastn report`: write the pictures and the page of an experiment or a comparison again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ray_deltastn.cli.places import code_of
from ray_deltastn.cli.show import short_table, show_comparison, show_experiment
from ray_deltastn.reports.comparison import write_comparison
from ray_deltastn.reports.experiment import write_report
from ray_deltastn.reports.results import Results
from ray_deltastn.reports.several import draw_several, names_of, several_table
from ray_deltastn.tasks.imports import importable
from ray_deltastn.tune.console import PlainConsole
from ray_deltastn.tune.folder.layout import COMPARISON_FILE, PAGE
from ray_deltastn.tune.output import one_line


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    console = PlainConsole()
    if options.others:
        _several(console, [options.folder, *options.others], options.picture)
        return
    if options.picture is not None:
        raise ValueError(f"`--picture` needs several experiments, got {options.folder} alone")
    if (options.folder / COMPARISON_FILE).exists():
        show_comparison(console, write_comparison(options.folder))
    else:
        with importable(code_of(options)):
            results = write_report(options.folder)
        show_experiment(console, results)
    console.print(one_line(f"wrote {options.folder / PAGE}"))


def _several(console: Console, folders: Sequence[Path], picture: Path | None) -> None:
    for folder in folders:
        if (folder / COMPARISON_FILE).exists():
            raise ValueError(f"`{folder}` must be an experiment to be drawn with others, got a comparison")
    names = names_of(folders)
    every = [Results(folder) for folder in folders]
    joined = "+".join(folder.resolve().name for folder in folders)
    path = draw_several(every, names, picture or folders[0].resolve().parent / f"{joined}.png")
    console.print(short_table("Best trials", *several_table(every, names)))
    console.print(one_line(f"wrote {path}"))
