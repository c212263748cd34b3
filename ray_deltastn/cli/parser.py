"""The command line: its commands and their options. It imports only what it needs to print its help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ray_deltastn._version import __version__
from ray_deltastn.compare.contenders import CONTENDERS

#: Kinds of YAML files.
KINDS = ("experiment", "comparison")
#: What a refit uses of the schedule, see `ray_deltastn.training.refit.Use`.
USES = ("schedule", "final")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    found = argparse.ArgumentParser(prog="ray-deltastn", description="Δ-STN inside Ray Tune.")
    found.add_argument("--version", action="version", version=__version__)
    commands = found.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run an experiment from a YAML file and write its report")
    _add_running(run, "configs/digits_hybrid.yaml", "train.epochs=5")
    compare = commands.add_parser("compare", help="compare methods on one task with an equal budget of epochs")
    _add_running(compare, "configs/digits_compare.yaml", "trials=4")
    compare.add_argument("--methods", help=f"comma-separated methods, from {','.join(CONTENDERS)} (default: all)")
    compare.add_argument("--seeds", type=int, help="number of seeds (default: 3)")
    status = commands.add_parser("status", help="show the progress of an experiment or a comparison")
    status.add_argument("folder", type=Path, help="results folder")
    report = commands.add_parser(
        "report", help="write the pictures and report.html again, or draw several experiments in one picture"
    )
    report.add_argument("folder", type=Path, help="results folder of an experiment or a comparison")
    report.add_argument("others", type=Path, nargs="*", metavar="folder", help="more experiments for one picture")
    report.add_argument(
        "--picture", type=Path, metavar="FILE", help="picture of several experiments (default: A+B.png beside A)"
    )
    again = commands.add_parser("refit", help="train the best trial again on training and validation data together")
    again.add_argument("folder", type=Path, help="results folder of an experiment")
    again.add_argument("--of", metavar="TRIAL", help="id of the trial (default: the best trial)")
    again.add_argument(
        "--use",
        choices=USES,
        default="schedule",
        help="the schedule up to the best epoch, or its last values as constants",
    )
    commands.add_parser("tasks", help="list the ready tasks with their hyperparameters")
    begun = commands.add_parser("init", help="write a task of your own, and a YAML file that runs it")
    begun.add_argument("file", type=Path, help="Python file to write, such as my_task.py; the YAML file is beside it")
    written = commands.add_parser("schema", help="print the JSON schema of a YAML file, for editors")
    written.add_argument("kind", choices=KINDS, help="kind of the YAML file")
    return found


def _add_running(parser: argparse.ArgumentParser, config: str, override: str) -> None:
    """Add the options of every command that runs trials.

    Args:
        parser: parser of the command.
        config: example of a YAML file.
        override: example of an override.
    """
    parser.add_argument("config", type=Path, help=f"YAML file, such as {config}")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help=f"override a value, such as {override}",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="the same as KEY=VALUE alone")
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


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; overrides without `--set` are among those with it.

    Args:
        arguments: command line without the program's name.
    """
    own = parser()
    options, more = own.parse_known_args(arguments)
    # argparse takes positional arguments at one place only, but overrides may also stand between options.
    overrides = [*getattr(options, "overrides", ()), *more]
    if more and ("overrides" not in options or any(word.startswith("-") for word in more)):
        hint = "; options of the YAML file have no dashes: `train.epochs=5`" if "overrides" in options else ""
        own.error(f"unrecognized arguments: {' '.join(more)}{hint}")
    if "overrides" in options:
        options.set = [*options.set, *overrides]
    return options
