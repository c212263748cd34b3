"""Run the experiments of a comparison one after another, each on all workers, and gather their reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from ray_deltastn.compare.plan import CompareConfig, Planned, plan
from ray_deltastn.tune.experiment import read_results, run_experiment, write_parquet
from ray_deltastn.tune.guards import (
    DRIVER_FILE,
    PARQUET_FILE,
    RESULTS_FILE,
    SPACE_FILE,
    ResumeError,
    unfinished,
)
from ray_deltastn.tune.report_log import last_of_each, read_log
from ray_deltastn.tune.status import state_of

COMPARISON_FILE, RUNS_FOLDER = "comparison.json", "runs"


def run_comparison(
    config: CompareConfig,
    methods: Sequence[str],
    seeds: int,
    out: Path,
    resume: bool = False,
    trust: bool = False,
    address: str | None = None,
) -> pd.DataFrame:
    """Run every method with every seed and write `results.csv`, and `results.parquet` with the same.

    Args:
        config: the comparison.
        methods: names in `CONTENDERS`.
        seeds: number of seeds, from 0.
        out: results folder, made if it is missing; each experiment has a folder in its `runs/`.
        resume: go on with the comparison in `out`: what has ended stays, what was interrupted continues. Other methods
            and seeds than before may be asked for; single runs then run again, since they are one experiment.
        trust: resume a folder that belongs to someone else, too; see `run_experiment`.
        address: of a Ray cluster that is already running; by default `$RAY_ADDRESS`, else this machine alone.

    Returns:
        One row per report of every trial, with the columns `method` and `seed` in front.

    Raises:
        ResumeError: if `out` holds a comparison and `resume` is not set, or another one than this.
        ValueError: if a method is unknown, or the task or an option breaks a rule.
    """
    planned = plan(config, methods, seeds)
    note = out / COMPARISON_FILE
    if note.exists() and not resume:
        raise ResumeError(f"`{out}` must not hold a comparison; continue it with --resume, or remove it")
    if note.exists() and CompareConfig.model_validate_json(note.read_text()).model_dump() != config.model_dump():
        raise ResumeError(f"the comparison in `{out}` must be the same to go on with, got another configuration")
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(config.model_dump_json(indent=2, exclude_unset=True) + "\n")
    console = Console(soft_wrap=True)
    for number, one in enumerate(planned, 1):
        folder = out / RUNS_FOLDER / one.name
        if (folder / RESULTS_FILE).exists():
            continue
        console.print(f"{number}/{len(planned)}  {one.name}", style="bold", highlight=False)
        run_experiment(one.config, folder, unfinished(folder), trust, address)
    results = gather(out, planned, methods)
    (out / SPACE_FILE).write_text((out / RUNS_FOLDER / planned[0].name / SPACE_FILE).read_text())
    write_parquet(results, out / PARQUET_FILE)
    results.to_csv(out / RESULTS_FILE, index=False)
    return results


def progress(out: Path) -> Table:
    """How far the experiments of a comparison are, from their files alone; one line each.

    Raises:
        FileNotFoundError: if the folder holds no comparison.
    """
    if not (out / COMPARISON_FILE).exists():
        raise FileNotFoundError(f"`{out}` must hold a comparison, got no {COMPARISON_FILE}")
    table = Table(title="Comparison", title_justify="left")
    for name in ("experiment", "state", "trials", "epochs", "best validation loss"):
        table.add_column(name, justify="left" if name in ("experiment", "state") else "right", overflow="fold")
    for folder in sorted((out / RUNS_FOLDER).iterdir()):
        trials = read_log(folder)
        losses = [report.result["valid_loss"] for reports in trials.values() for report in last_of_each(reports)]
        best = f"{min(losses):.4f}" if losses else "–"
        table.add_row(folder.name, state_of(folder), str(len(trials)), str(len(losses)), best)
    return table


def gather(out: Path, planned: Sequence[Planned], methods: Sequence[str]) -> pd.DataFrame:
    """Reports of all experiments; `wall_seconds` is what the whole search, or the single run, took on the clock."""
    parts = []
    for one in planned:
        folder = out / RUNS_FOLDER / one.name
        reports = read_results(folder / RESULTS_FILE)
        if one.method is None:
            wall = reports.groupby("trial_id")["time_total_s"].transform("max")
            reports = reports.assign(method=reports["config/method"], seed=reports["config/seed"], wall_seconds=wall)
        else:
            wall = json.loads((folder / DRIVER_FILE).read_text())["wall_seconds"]
            reports = reports.assign(method=one.method, seed=one.seed, wall_seconds=wall)
        parts.append(reports)
    every = pd.concat(parts, ignore_index=True)
    order = {name: place for place, name in enumerate(methods)}
    every = every.sort_values(["method", "seed", "arrived"], key=lambda c: c.map(order) if c.name == "method" else c)
    first = ["method", "seed", "wall_seconds", "trial_id"]
    return every[[*first, *(name for name in every if name not in first)]].reset_index(drop=True)
