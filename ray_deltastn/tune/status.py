"""State and progress of an experiment, read from its files only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from ray_deltastn.training.columns import WARNINGS
from ray_deltastn.training.file_names import experiments_in
from ray_deltastn.tune.config import option_of
from ray_deltastn.tune.folder.layout import CONFIG_FILE, CONTROL_FOLDER, LOCK_FILE, RESULTS_FILE, TRIALS_FOLDER
from ray_deltastn.tune.folder.log import read_log
from ray_deltastn.tune.trial_table import TrialTable


def state_of(out: Path) -> str:
    """State of an experiment: `ended`, `running` or `stopped`.

    Raises:
        FileNotFoundError: if the folder holds no experiment.
    """
    if not (out / CONFIG_FILE).exists():
        raise FileNotFoundError(f"`{out}` must hold an experiment, got no {CONFIG_FILE}{experiments_in(out)}")
    if (out / RESULTS_FILE).exists():
        return "ended"
    if not (out / LOCK_FILE).exists():
        return "stopped"
    try:
        with FileLock(out / LOCK_FILE, timeout=0):
            return "stopped"
    except Timeout:
        return "running"


def control_state(out: Path) -> str | None:
    """State of an experiment's control, see `state_of`, or `waiting`; None if the experiment asks for no control."""
    if not json.loads((out / CONFIG_FILE).read_text()).get("control"):
        return None
    folder = out / CONTROL_FOLDER
    return state_of(folder) if (folder / CONFIG_FILE).exists() else "waiting"


def status(out: Path, console: Console) -> tuple[str, Table]:
    """State of an experiment, and a table with one line per trial.

    The state "fell back" means that a checkpoint was damaged and the trial continued from an earlier one.

    Args:
        out: results folder.
        console: the console that will show the table; its width decides which columns fit.

    Returns:
        The state, see `state_of`, and the table.

    Raises:
        FileNotFoundError: if the folder holds no experiment.
    """
    state = state_of(out)
    config: dict[str, Any] = json.loads((out / CONFIG_FILE).read_text())
    trials = TrialTable([option_of(name) for name in config["search"]], config["tune"]["num_samples"])
    for trial_id, reports in read_log(out).items():
        last = reports[-1].result
        if last.get("done"):
            now = "diverged" if last.get("diverged") else "done"
        elif (out / TRIALS_FOLDER / trial_id / "error.txt").exists() and state == "ended":
            now = "failed"
        else:
            now = "running" if state == "running" else "waiting"
        if any(report.result.get(WARNINGS("damaged_checkpoints")) for report in reports):
            now += ", fell back"
        trials.note(trial_id, now, reports[-1].config, [report.result for report in reports])
    return state, trials.table(console.width, most=None)
