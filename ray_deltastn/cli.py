"""The command `ray-deltastn`: run an experiment or a comparison, show its progress, or train its best trial again."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.progress import TextColumn
from rich.table import Table

from ray_deltastn._version import __version__
from ray_deltastn.compare.plan import CONTENDERS, CompareConfig
from ray_deltastn.compare.progress import progress
from ray_deltastn.compare.run import run_comparison
from ray_deltastn.compare.tables import SHORT, cells, gain
from ray_deltastn.reports.comparison import Comparison, statement, write_comparison
from ray_deltastn.reports.experiment import write_report
from ray_deltastn.reports.page import PAGE
from ray_deltastn.reports.results import Results
from ray_deltastn.tasks.imports import importable
from ray_deltastn.training.refit import Use, refit
from ray_deltastn.training.saved import MODEL_FILE, SCHEDULE_FILE
from ray_deltastn.tune.config import ConfigError, ExperimentConfig
from ray_deltastn.tune.console import PlainConsole, lasting_output, one_line, plain
from ray_deltastn.tune.experiment import TrialsFailedError, run_experiment
from ray_deltastn.tune.finished import FinishedTrial
from ray_deltastn.tune.folder.code import read_code
from ray_deltastn.tune.folder.layout import COMPARISON_FILE, REFIT_FOLDER, STATES_FOLDER, TRIALS_FOLDER, ResumeError
from ray_deltastn.tune.folder.states import state_files
from ray_deltastn.tune.reading import load_yaml
from ray_deltastn.tune.schema import schema
from ray_deltastn.tune.status import status as read_status
from ray_deltastn.tune.stopping import Terminated, terminable

#: Kinds of YAML files and their configuration classes.
KINDS: dict[str, type[ExperimentConfig]] = {"experiment": ExperimentConfig, "comparison": CompareConfig}

#: Commands that run trials and the kinds of their YAML files.
_KIND_OF = {"run": "experiment", "compare": "comparison"}
_A = {"run": "an experiment", "compare": "a comparison"}

#: Exit status after SIGTERM.
TERMINATED = 143

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
        Exit status: 0 after success, 1 after an error (one line on standard error), 130 after Ctrl-C, 143 after
        SIGTERM.
    """
    with lasting_output():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    told = threading.Event()
    try:
        with terminable(lambda: _leave(options, told)), importable(_code(options)):
            COMMANDS[options.command](PlainConsole(), options)
    except (ConfigError, ResumeError, TrialsFailedError, ImportError, OSError, ValueError, TypeError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC
        advice = "; free disk space, then continue with --resume" if full else ""
        print(f"ray-deltastn: {' '.join(str(error).splitlines())}{advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"ray-deltastn: {_stopped(options)}", file=sys.stderr)
        told.set()
        return TERMINATED if isinstance(stop, Terminated) else 130
    return 0


def _code(options: argparse.Namespace) -> list[Path]:
    """Folders that may hold the task's module: that of the YAML file, and the one the command was started in."""
    if "config" in options:
        return [options.config.parent, Path.cwd()]
    return [*read_code(options.folder), Path.cwd()] if "folder" in options else []


def _leave(options: argparse.Namespace, told: threading.Event) -> None:
    """End the process at once, because it was told to stop and still runs; what is on the disk can be resumed."""
    if not told.is_set():
        print(f"ray-deltastn: {_stopped(options)}", file=sys.stderr, flush=True)
    os._exit(TERMINATED)


def _stopped(options: argparse.Namespace) -> str:
    """What a command that was stopped says."""
    if options.command == "refit":
        return "stopped; the same command continues"
    if options.command not in ("run", "compare"):
        return "stopped"
    out = _out(options)
    saved = (out / COMPARISON_FILE).exists() or any(map(state_files, (out / TRIALS_FOLDER, out / STATES_FOLDER)))
    return "stopped; continue with --resume" if saved else "stopped before any trial; nothing is saved"


def _read(options: argparse.Namespace) -> Any:
    """Read the YAML file of a command that runs trials.

    Raises:
        ConfigError: if the file breaks a rule; if it is meant for the other command, the message names that command.
    """
    path = options.config
    try:
        return KINDS[_KIND_OF[options.command]].read(path, options.set)
    except ConfigError:
        meant = _meant_for(path)
        if meant in (None, options.command):
            raise
        raise ConfigError(
            f"`{path}` must be {_A[options.command]}, got {_A[meant]}; use `ray-deltastn {meant} {path}`"
        ) from None


def _meant_for(path: Path) -> str | None:
    """The command that a YAML file is written for; None if neither can read it."""
    own = CompareConfig.model_fields.keys() - ExperimentConfig.model_fields.keys()
    try:
        if own & load_yaml(path, ()).keys():
            return "compare"
        ExperimentConfig.read(path)
    except ConfigError:
        return None
    return "run"


def _out(options: argparse.Namespace) -> Path:
    """Results folder of a command that runs trials."""
    out: Path = options.out or Path("results", options.config.stem)
    return out


def _run(console: Console, options: argparse.Namespace) -> None:
    started = time.monotonic()
    config = _read(options)
    out = _out(options)
    run_experiment(config, out, options.resume, options.trust, options.address, _code(options))
    _show(console, write_report(out))
    _show_end(console, started, out)


def _compare(console: Console, options: argparse.Namespace) -> None:
    started = time.monotonic()
    config = _read(options)
    out = _out(options)
    methods = None if options.methods is None else [name.strip() for name in options.methods.split(",")]
    run_comparison(config, methods, options.seeds, out, options.resume, options.trust, options.address, _code(options))
    _show_comparison(console, write_comparison(out))
    _show_end(console, started, out)


def _status(console: Console, options: argparse.Namespace) -> None:
    if (options.folder / COMPARISON_FILE).exists():
        console.print(progress(options.folder))
        return
    state, table = read_status(options.folder, console)
    console.print(table)
    more = {"stopped": "; continue with --resume", "ended": f"; the report is {options.folder / PAGE}"}
    console.print(one_line(state + more.get(state, "")))


def _report(console: Console, options: argparse.Namespace) -> None:
    if (options.folder / COMPARISON_FILE).exists():
        _show_comparison(console, write_comparison(options.folder))
    else:
        _show(console, write_report(options.folder))
    console.print(one_line(f"wrote {options.folder / PAGE}"))


def _schema(console: Console, options: argparse.Namespace) -> None:
    # JSON has escapes for the characters that the encoding of the output lacks.
    escaped = not str(sys.stdout.encoding).lower().startswith("utf")
    print(json.dumps(schema(KINDS[options.kind]), indent=1, ensure_ascii=escaped))


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
            console.print(f"{what.replace('_', ' ')}: {best[what]:.4f} in the trial, {last[what]:.4f} now")
    console.print(one_line(f"wrote {MODEL_FILE} and {SCHEDULE_FILE} in {home}"))


def _show_end(console: Console, started: float, out: Path) -> None:
    seconds = time.monotonic() - started
    console.print(one_line(f"finished in {seconds:.0f} s; results are in {out}, the report is {out / PAGE}"))


def _show_comparison(console: Console, found: Comparison) -> None:
    header, rows = cells(found.summary, SHORT)
    title = f"Comparison with a budget of {found.asked.config.budget} epochs per method and seed{found.cost}"
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=name == "method")
    for row in rows:
        table.add_row(*map(plain, row))
    console.print(table)
    told = gain(found.per_seed)
    for line in [
        *([told] if told else []),
        *found.notes(),
        statement(found),
        *(map(str, found.differences) if found.asked.seeds > 1 else []),
    ]:
        console.print(line)


def _show(console: Console, results: Results) -> None:
    table = Table(title="Best trial", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in results.best_table():
        table.add_row(plain(name), plain(value))
    console.print(table)
    for note in results.notes():
        console.print(note)


#: What each command does.
COMMANDS: dict[str, Callable[[Console, argparse.Namespace], None]] = {
    "run": _run,
    "compare": _compare,
    "status": _status,
    "report": _report,
    "refit": _refit,
    "schema": _schema,
}
