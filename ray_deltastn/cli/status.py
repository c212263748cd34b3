"""`ray-deltastn status`: show the progress of an experiment or a comparison, from its files only."""

from __future__ import annotations

import argparse

from ray_deltastn.compare.progress import progress
from ray_deltastn.tune.console import PlainConsole
from ray_deltastn.tune.folder.layout import COMPARISON_FILE, PAGE
from ray_deltastn.tune.output import one_line
from ray_deltastn.tune.status import control_state, status


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    console = PlainConsole()
    if (options.folder / COMPARISON_FILE).exists():
        console.print(progress(options.folder))
        return
    state, table = status(options.folder, console)
    console.print(table)
    control = control_state(options.folder)
    more = {"stopped": "; continue with --resume", "ended": f"; the report is {options.folder / PAGE}"}
    if control is not None and control != "ended":
        more["ended"] = f"; its control is {control}" + ("; continue with --resume" if control == "stopped" else "")
    console.print(one_line(state + more.get(state, "")))
