"""The entry of the command `ray-deltastn`: it runs one command, and turns errors and signals into one line.

Each command is a module of its own, which is imported when it is used. So the help and the errors do not wait for Ray.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import threading
from collections.abc import Sequence

from ray_deltastn.cli.blame import place_of
from ray_deltastn.cli.parser import parse
from ray_deltastn.cli.places import out_of
from ray_deltastn.tune.folder.layout import (
    COMPARISON_FILE,
    STATES_FOLDER,
    TRIALS_FOLDER,
    ResumeError,
    TrialsFailedError,
    state_files,
)
from ray_deltastn.tune.output import lasting_output
from ray_deltastn.tune.stopping import Terminated, terminable

#: Command → the module whose function `run` does it.
COMMANDS = {
    "run": "ray_deltastn.cli.run",
    "compare": "ray_deltastn.cli.run",
    "status": "ray_deltastn.cli.status",
    "report": "ray_deltastn.cli.report",
    "refit": "ray_deltastn.cli.refit",
    "schema": "ray_deltastn.cli.schema",
    "tasks": "ray_deltastn.cli.tasks",
    "init": "ray_deltastn.cli.init",
}

#: Exit status after SIGTERM.
TERMINATED = 143


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
    options = parse(sys.argv[1:] if arguments is None else arguments)
    told = threading.Event()
    try:
        with terminable(lambda: _leave(options, told)):
            importlib.import_module(COMMANDS[options.command]).run(options)
    except (ResumeError, TrialsFailedError, ImportError, OSError, ValueError, TypeError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC
        advice = "; free disk space, then continue with --resume" if full else ""
        print(f"ray-deltastn: {' '.join(str(error).splitlines())}{advice}{place_of(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"ray-deltastn: {_stopped(options)}", file=sys.stderr)
        told.set()
        return TERMINATED if isinstance(stop, Terminated) else 130
    return 0


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
    out = out_of(options)
    saved = (out / COMPARISON_FILE).exists() or any(map(state_files, (out / TRIALS_FOLDER, out / STATES_FOLDER)))
    return "stopped; continue with --resume" if saved else "stopped before any trial; nothing is saved"
