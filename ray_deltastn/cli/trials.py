"""The commands that run trials, once their YAML files have been read."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ray_deltastn.cli.show import show_comparison, show_experiment
from ray_deltastn.compare.plan import CompareConfig
from ray_deltastn.compare.run import run_comparison
from ray_deltastn.reports.comparison import write_comparison
from ray_deltastn.reports.experiment import write_report
from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.console import PlainConsole
from ray_deltastn.tune.control import run_with_control
from ray_deltastn.tune.folder.layout import PAGE
from ray_deltastn.tune.output import one_line


def experiment(
    config: ExperimentConfig, out: Path, options: argparse.Namespace, code: Sequence[Path], started: float
) -> None:
    """Run an experiment, write its report and show it.

    Args:
        config: the experiment.
        out: results folder.
        options: the command line.
        code: folders that may hold the task's module.
        started: time at which the command started.
    """
    run_with_control(config, out, options.resume, options.trust, options.address, code)
    console = PlainConsole()
    show_experiment(console, write_report(out))
    _show_end(console, started, out)


def comparison(
    config: CompareConfig, out: Path, options: argparse.Namespace, code: Sequence[Path], started: float
) -> None:
    """Run a comparison, write its report and show it; the arguments are those of `experiment`."""
    methods = None if options.methods is None else [name.strip() for name in options.methods.split(",")]
    run_comparison(config, methods, options.seeds, out, options.resume, options.trust, options.address, code)
    console = PlainConsole()
    show_comparison(console, write_comparison(out))
    _show_end(console, started, out)


def _show_end(console: Console, started: float, out: Path) -> None:
    seconds = time.monotonic() - started
    console.print(one_line(f"finished in {seconds:.0f} s; results are in {out}, the report is {out / PAGE}"))
