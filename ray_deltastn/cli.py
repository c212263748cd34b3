"""The command `ray-deltastn`: run an experiment or a comparison, show its progress, or train its best trial again."""

from __future__ import annotations

import argparse
import errno
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.progress import TextColumn
from rich.table import Table

from ray_deltastn._version import __version__
from ray_deltastn.compare.plan import CONTENDERS, CompareConfig
from ray_deltastn.compare.progress import progress
from ray_deltastn.compare.run import COMPARISON_FILE, run_comparison
from ray_deltastn.compare.tables import SHORT, cells, gain
from ray_deltastn.reports.comparison import Comparison, statement, write_comparison
from ray_deltastn.reports.experiment import write_report
from ray_deltastn.reports.page import PAGE
from ray_deltastn.reports.results import Results
from ray_deltastn.tasks.imports import importable
from ray_deltastn.training.refit import Use, refit
from ray_deltastn.training.saved import MODEL_FILE, SCHEDULE_FILE
from ray_deltastn.tune.config import ConfigError, ExperimentConfig
from ray_deltastn.tune.experiment import run_experiment
from ray_deltastn.tune.finished import FinishedTrial
from ray_deltastn.tune.folder.code import read_code
from ray_deltastn.tune.folder.layout import REFIT_FOLDER, ResumeError
from ray_deltastn.tune.schema import schema
from ray_deltastn.tune.status import status as read_status

#: Kinds of YAML files and their configuration classes.
KINDS: dict[str, type[ExperimentConfig]] = {"experiment": ExperimentConfig, "comparison": CompareConfig}

#: Losses of a report, the one to show first.
_SHOWN = ("test_loss", "train_loss")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ray-deltastn", description="Δ-STN inside Ray Tune.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run an experiment from a YAML file and write its report")
    _add_running(run, "configs/digits_hybrid.yaml", "train.epochs=5")
    compare = commands.add_parser("compare", help="compare methods on one task with an equal budget of epochs")
    _add_running(compare, "configs/digits_compare.yaml", "trials=4")
    compare.add_argument("--methods", help=f"comma-separated methods, from {','.join(CONTENDERS)} (default: all)")
    compare.add_argument("--seeds", type=int, help="number of seeds (default: 3)")
    status = commands.add_parser("status", help="show the progress of an experiment or a comparison")
    status.add_argument("folder", type=Path, help="results folder")
    report = commands.add_parser(
        "report", help="write the pictures and report.html of an experiment or a comparison again"
    )
    report.add_argument("folder", type=Path, help="results folder")
    again = commands.add_parser("refit", help="train the best trial again on training and validation data together")
    again.add_argument("folder", type=Path, help="results folder of an experiment")
    again.add_argument("--of", metavar="TRIAL", help="id of the trial (default: the best trial)")
    again.add_argument(
        "--use", choices=get_args(Use), default="schedule", help="the whole schedule, or its last values as constants"
    )
    written = commands.add_parser("schema", help="print the JSON schema of a YAML file, for editors")
    written.add_argument("kind", choices=KINDS, help="kind of the YAML file")
    return parser


def _add_running(parser: argparse.ArgumentParser, config: str, override: str) -> None:
    """Add the options of every command that runs trials.

    Args:
        parser: parser of the command.
        config: example of a YAML file.
        override: example of an override.
    """
    parser.add_argument("config", type=Path, help=f"YAML file, such as {config}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"override a value, such as {override}"
    )
    parser.add_argument("--out", type=Path, help="results folder (default: results/<config name>)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted or killed run")
    parser.add_argument(
        "--address", help="address of a running Ray cluster (default: $RAY_ADDRESS, else Ray starts on this machine)"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="resume a folder of another user; Tune unpickles its files, which can run any code",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: command line without the program's name; by default `sys.argv[1:]`.

    Returns:
        Exit status: 0 after success, 1 after an error (one line on standard error), 130 after an interrupt.
    """
    options = _parser().parse_args(arguments)
    code = _code(options)
    with importable(code):
        return _command(options, code)


def _code(options: argparse.Namespace) -> list[Path]:
    """Folders that may hold the task's module: that of the YAML file, and the one the command was started in."""
    if "config" in options:
        return [options.config.parent, Path.cwd()]
    return [*read_code(options.folder), Path.cwd()] if "folder" in options else []


def _command(options: argparse.Namespace, code: Sequence[Path]) -> int:
    console = Console()
    try:
        if options.command == "run":
            started = time.monotonic()
            config = ExperimentConfig.read(options.config, options.set)
            out = options.out or Path("results", options.config.stem)
            run_experiment(config, out, options.resume, options.trust, options.address, code)
            results = write_report(out)
            _show(console, results)
            _show_end(console, started, out)
        elif options.command == "compare":
            _compare(console, options, code)
        elif options.command == "status" and (options.folder / COMPARISON_FILE).exists():
            console.print(progress(options.folder))
        elif options.command == "status":
            state, table = read_status(options.folder, console)
            console.print(table)
            more = {"stopped": "; continue with --resume", "ended": f"; the report is {options.folder / PAGE}"}
            console.print(state + more.get(state, ""), highlight=False)
        elif options.command == "refit":
            _refit(console, options)
        elif options.command == "schema":
            print(json.dumps(schema(KINDS[options.kind]), indent=1, ensure_ascii=False))
        else:
            if (options.folder / COMPARISON_FILE).exists():
                _show_comparison(console, write_comparison(options.folder))
            else:
                _show(console, write_report(options.folder))
            console.print(f"wrote {options.folder / PAGE}", highlight=False)
    except (ConfigError, ResumeError, ImportError, OSError, ValueError, TypeError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC
        advice = "; free disk space, then continue with --resume" if full else ""
        print(f"ray-deltastn: {error}{advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ray-deltastn: stopped; continue with --resume", file=sys.stderr)
        return 130
    return 0


def _compare(console: Console, options: argparse.Namespace, code: Sequence[Path]) -> None:
    started = time.monotonic()
    config = CompareConfig.read(options.config, options.set)
    out = options.out or Path("results", options.config.stem)
    methods = None if options.methods is None else [name.strip() for name in options.methods.split(",")]
    run_comparison(config, methods, options.seeds, out, options.resume, options.trust, options.address, code)
    _show_comparison(console, write_comparison(out))
    _show_end(console, started, out)


def _refit(console: Console, options: argparse.Namespace) -> None:
    results = Results(options.folder)
    best = results.best if options.of is None else results.best_of(options.of)
    name = str(best["trial_id"])
    trial = FinishedTrial(options.folder, name)
    schedule = trial.schedule(int(best["epoch"]))
    home = options.folder / REFIT_FOLDER / f"{name}-{options.use}"
    last: dict[str, Any] = {}
    with ProgressBar(*ProgressBar.get_default_columns(), TextColumn("{task.fields[loss]}"), console=console) as bar:
        row = bar.add_task(f"trial {name}", total=len(schedule), loss="")

        def show(report: dict[str, Any]) -> None:
            last.update(report)
            shown = next(f"{key.replace('_', ' ')} {report[key]:.4f}" for key in _SHOWN if key in report)
            bar.update(row, completed=report["epoch"], loss=shown)

        refit(trial.build(), schedule, use=options.use, folder=home, on_report=show, **trial.refit_options)
    for what in ("test_loss", "test_accuracy"):
        if what in last:
            console.print(
                f"{what.replace('_', ' ')}: {best[what]:.4f} in the trial, {last[what]:.4f} now", highlight=False
            )
    console.print(f"wrote {MODEL_FILE} and {SCHEDULE_FILE} in {home}", highlight=False)


def _show_end(console: Console, started: float, out: Path) -> None:
    seconds = time.monotonic() - started
    console.print(f"finished in {seconds:.0f} s; results are in {out}, the report is {out / PAGE}", highlight=False)


def _show_comparison(console: Console, found: Comparison) -> None:
    header, rows = cells(found.summary, SHORT)
    title = f"Comparison with a budget of {found.asked.config.budget} epochs per method and seed{found.cost}"
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=name == "method")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    told = gain(found.per_seed)
    for line in [
        *([told] if told else []),
        *found.notes(),
        statement(found),
        *(map(str, found.differences) if found.asked.seeds > 1 else []),
    ]:
        console.print(line, highlight=False)


def _show(console: Console, results: Results) -> None:
    table = Table(title="Best trial", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in results.best_table():
        table.add_row(name, value)
    console.print(table)
    for note in results.notes():
        console.print(note, highlight=False)
