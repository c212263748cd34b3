"""`ray-deltastn refit`: train the best trial again on training and validation data together."""

from __future__ import annotations

import argparse
from typing import Any

from rich.progress import Progress, TextColumn

from ray_deltastn.cli.places import code_of
from ray_deltastn.compare.outcomes import shown_metrics
from ray_deltastn.reports.results import Results
from ray_deltastn.tasks.imports import importable
from ray_deltastn.training.refit import refit
from ray_deltastn.training.saved import MODEL_FILE, SCHEDULE_FILE
from ray_deltastn.tune.console import PlainConsole
from ray_deltastn.tune.finished import FinishedTrial
from ray_deltastn.tune.folder.layout import REFIT_FOLDER
from ray_deltastn.tune.guards import check_identity
from ray_deltastn.tune.output import one_line

#: Losses of a report, the one to show first.
_SHOWN = ("test_loss", "train_loss")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    with importable(code_of(options)):
        _refit(options)


def _refit(options: argparse.Namespace) -> None:
    console = PlainConsole()
    results = Results(options.folder)
    best = results.best if options.of is None else results.best_of(options.of)
    name = str(best["trial_id"])
    trial = FinishedTrial(options.folder, name)
    schedule = trial.schedule(int(best["epoch"]))
    task = trial.build()
    check_identity(options.folder, task.identity)
    home = options.folder / REFIT_FOLDER / f"{name}-{options.use}"
    last: dict[str, Any] = {}
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[loss]}"), console=console) as bar:
        row = bar.add_task(f"trial {name}", total=len(schedule), loss="")

        def show(report: dict[str, Any]) -> None:
            last.update(report)
            shown = next(f"{key.replace('_', ' ')} {report[key]:.4f}" for key in _SHOWN if key in report)
            bar.update(row, completed=report["epoch"], loss=shown)

        refit(task, schedule, use=options.use, folder=home, on_report=show, **trial.refit_options)
    for what in ("test_loss", "test_accuracy", *shown_metrics(last)):
        if what in last and what.startswith("test_"):  # validation data are trained on
            console.print(f"{what.replace('_', ' ')}: {best[what]:.4f} in the trial, {last[what]:.4f} now")
    console.print(one_line(f"wrote {MODEL_FILE} and {SCHEDULE_FILE} in {home}"))
