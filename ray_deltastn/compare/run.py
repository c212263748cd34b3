"""Run the experiments of a comparison one after another, each on all workers, and collect their reports."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ray_deltastn.compare.asked import Asked
from ray_deltastn.compare.contenders import CONTENDERS
from ray_deltastn.compare.plan import CompareConfig
from ray_deltastn.training.columns import SECONDS
from ray_deltastn.training.files import write_whole
from ray_deltastn.tune.console import PlainConsole
from ray_deltastn.tune.experiment import run_experiment
from ray_deltastn.tune.folder.layout import (
    COMPARISON_FILE,
    CONFIG_FILE,
    DRIVER_FILE,
    LINEAGE_FILE,
    RESULTS_FILE,
    RUNS_FOLDER,
    SPACE_FILE,
    STATES_FOLDER,
    TRIALS_FOLDER,
    ResumeError,
    state_files,
)
from ray_deltastn.tune.folder.results import read_lineage, read_results, write_results
from ray_deltastn.tune.guards import alone, check_own, check_same, unfinished
from ray_deltastn.tune.task_check import check_task

#: Default number of seeds.
SEEDS = 3


def run_comparison(
    config: CompareConfig,
    methods: Sequence[str] | None,
    seeds: int | None,
    out: Path,
    resume: bool = False,
    trust: bool = False,
    address: str | None = None,
    code: Sequence[Path] = (),
) -> pd.DataFrame:
    """Run every method with every seed and write the reports to `results.csv` and `results.parquet`.

    Args:
        config: the comparison.
        methods: names in `CONTENDERS`. None means all methods or, with `resume`, the same methods as before.
        seeds: number of seeds; they are 0, 1, …. None means 3 or, with `resume`, the same number as before.
        out: results folder; it is created if missing. Each experiment has a folder in its `runs/`.
        resume: continue the comparison in `out`. Finished experiments are kept, interrupted ones are resumed, and
            methods and seeds may be added or left out.
        trust: resume even if the folder belongs to another user; see `run_experiment`.
        address: address of a running Ray cluster; see `run_experiment`.
        code: folders that may hold the task's module; see `run_experiment`.

    Returns:
        One row per report of every trial; the first two columns are `method` and `seed`.

    Raises:
        ResumeError: if `out` holds a comparison and `resume` is not set; or if `resume` is set and `out` holds no
            comparison, or one with another configuration.
        ValueError: if a method is unknown, or the task or an option breaks a rule. It is raised before any trial
            starts.
    """
    before = _before(config, out, resume)
    asked = Asked(
        config,
        tuple(methods or (before.methods if before else CONTENDERS)),
        seeds if seeds is not None else before.seeds if before else SEEDS,
    )
    planned = asked.planned(out)
    for one in {one.methods: one for one in planned}.values():
        check_task(one.config)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        asked.write(out)
        console = PlainConsole(soft_wrap=True)
        for number, one in enumerate(planned, 1):
            folder = out / RUNS_FOLDER / one.name
            if (folder / RESULTS_FILE).exists():
                continue
            with contextlib.suppress(OSError, UnicodeError):  # an error of the output must not end a run
                console.print(f"{number}/{len(planned)}  {one.name}", style="bold")
            if unfinished(folder) and not any(map(state_files, (folder / TRIALS_FOLDER, folder / STATES_FOLDER))):
                shutil.rmtree(folder)  # it was killed before Tune wrote a state, so it starts again
            run_experiment(one.config, folder, unfinished(folder), trust, address, code)
        results = gather(out, asked)
        write_whole(out / SPACE_FILE, (out / RUNS_FOLDER / planned[0].name / SPACE_FILE).read_text())
        write_results(results, out)
    return results


def _before(config: CompareConfig, out: Path, resume: bool) -> Asked | None:
    """The comparison to resume; None if the comparison is new."""
    if (out / CONFIG_FILE).exists():
        raise ResumeError(
            f"`{out}` must not hold an experiment of `ray-deltastn run`, got a {CONFIG_FILE}; choose another folder"
        )
    if not (out / COMPARISON_FILE).exists():
        check_own(out)
    begun = any((out / RUNS_FOLDER).glob(f"*/{CONFIG_FILE}"))
    if (out / COMPARISON_FILE).exists() and not begun and not (out / RESULTS_FILE).exists() and not resume:
        return None  # the earlier command ended before any trial started
    if not (out / COMPARISON_FILE).exists():
        if resume or (out / RUNS_FOLDER).exists():
            raise ResumeError(f"`{out}` must hold a comparison to resume, got no {COMPARISON_FILE}")
        return None
    if not resume:
        raise ResumeError(f"`{out}` must not hold a comparison; continue it with --resume, or remove the folder")
    before = Asked.read(out)
    check_same(config.model_dump(), before.config.model_dump(), "comparison")
    return before


def gather(out: Path, asked: Asked) -> pd.DataFrame:
    """Collect the reports of all finished experiments, and write the copies made by PBT to `lineage.csv`.

    The column `wall_seconds` is the elapsed time. For a search it covers the whole experiment, with start-up and
    searcher. For a single run it covers that run, with its reports and checkpoints.

    Args:
        out: results folder of the comparison.
        asked: the requested comparison.

    Returns:
        One row per report of every trial; the first columns are `method`, `seed`, `wall_seconds` and `trial_id`.

    Raises:
        FileNotFoundError: if no experiment has ended.
    """
    parts, copies = [], []
    for one in asked.planned(out):
        folder = out / RUNS_FOLDER / one.name
        if not (folder / RESULTS_FILE).exists():
            continue
        reports = read_results(folder / RESULTS_FILE)
        if one.single:
            spent = reports["time_total_s"] + reports.get(SECONDS("between"), 0.0)
            wall = spent.groupby(reports["trial_id"]).transform("max")
            reports = reports.assign(method=reports["config/method"], seed=reports["config/seed"], wall_seconds=wall)
        else:
            wall = json.loads((folder / DRIVER_FILE).read_text())["wall_seconds"]
            reports = reports.assign(method=one.methods[0], seed=one.seeds[0], wall_seconds=wall)
            if (folder / LINEAGE_FILE).exists():
                copies.append(read_lineage(folder / LINEAGE_FILE).assign(method=one.methods[0], seed=one.seeds[0]))
        parts.append(reports[reports["method"].isin(asked.methods) & (reports["seed"] < asked.seeds)])
    if not parts:
        raise FileNotFoundError(f"`{out / RUNS_FOLDER}` must hold a finished experiment, got none")
    if copies:
        pd.concat(copies, ignore_index=True).to_csv(out / LINEAGE_FILE, index=False)
    every = pd.concat(parts, ignore_index=True)
    place = {name: number for number, name in enumerate(CONTENDERS)}
    every = every.sort_values(["method", "seed", "timestamp"], key=lambda c: c.map(place) if c.name == "method" else c)
    first = ["method", "seed", "wall_seconds", "trial_id"]
    ordered: pd.DataFrame = every[[*first, *(name for name in every if name not in first)]].reset_index(drop=True)
    return ordered
