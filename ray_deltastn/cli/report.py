"""`ray-deltastn report`: write the pictures and the page of an experiment or a comparison again."""

from __future__ import annotations

import argparse

from ray_deltastn.cli.places import code_of
from ray_deltastn.cli.show import show_comparison, show_experiment
from ray_deltastn.reports.comparison import write_comparison
from ray_deltastn.reports.experiment import write_report
from ray_deltastn.tasks.imports import importable
from ray_deltastn.tune.console import PlainConsole
from ray_deltastn.tune.folder.layout import COMPARISON_FILE, PAGE
from ray_deltastn.tune.output import one_line


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    console = PlainConsole()
    if (options.folder / COMPARISON_FILE).exists():
        show_comparison(console, write_comparison(options.folder))
    else:
        with importable(code_of(options)):
            results = write_report(options.folder)
        show_experiment(console, results)
    console.print(one_line(f"wrote {options.folder / PAGE}"))
