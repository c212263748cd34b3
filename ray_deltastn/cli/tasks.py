"""`ray-deltastn tasks`: list the ready tasks with their hyperparameters."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby

from rich.table import Table

from ray_deltastn.tasks.ready import READY
from ray_deltastn.tune.console import PlainConsole, plain


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    table = Table(title="Ready tasks", title_justify="left", show_lines=True)
    for name in ("task", "network and data", "hyperparameters"):
        table.add_column(name, no_wrap=name == "task")
    for name, task in READY.items():
        tuned = f"{len(task.hyperparameters)}: {', '.join(short(task.hyperparameters))}"
        table.add_row(*map(plain, (name, task.about, tuned)))
    console = PlainConsole()
    console.print(table)
    console.print("In a YAML file: `task: NAME`. A task of your own: `ray-deltastn init my_task.py`.")


def short(names: Sequence[str]) -> list[str]:
    """Names in which runs of the same name with rising numbers are one entry, such as `dropout0–7`."""
    found = []
    for stem, group in groupby(names, key=lambda name: name.rstrip("0123456789")):
        numbers = [name.removeprefix(stem) for name in group]
        found.append(f"{stem}{numbers[0]}–{numbers[-1]}" if len(numbers) > 1 else f"{stem}{numbers[0]}")
    return found
