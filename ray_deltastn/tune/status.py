"""How far an experiment is, from its files alone: running, stopped or ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from ray_deltastn.tune.config import option_of
from ray_deltastn.tune.experiment import read_results
from ray_deltastn.tune.guards import CONFIG_FILE, LOCK_FILE, RESULTS_FILE, TRIALS_FOLDER
from ray_deltastn.tune.progress import Progress


def state_of(out: Path) -> str:
    """What an experiment is doing: `ended`, `running` or `stopped`.

    Raises:
        FileNotFoundError: if the folder holds none.
    """
    if not (out / CONFIG_FILE).exists():
        raise FileNotFoundError(f"`{out}` must hold an experiment, got no {CONFIG_FILE}")
    if (out / RESULTS_FILE).exists():
        return "ended"
    if not (out / LOCK_FILE).exists():
        return "stopped"
    try:
        with FileLock(out / LOCK_FILE, timeout=0):
            return "stopped"
    except Timeout:
        return "running"


def status(out: Path, console: Console) -> tuple[str, Table]:
    """State and table of an experiment, one line per trial with its hyperparameters' way so far.

    Args:
        out: results folder.
        console: where the table will be shown.

    Raises:
        FileNotFoundError: if the folder holds no experiment.
    """
    state = state_of(out)
    config: dict[str, Any] = json.loads((out / CONFIG_FILE).read_text())
    progress = Progress([option_of(name) for name in config["search"]], config["tune"]["num_samples"], console)
    # Made when the trial began; its folder's own time changes with every checkpoint.
    for parameters in sorted((out / TRIALS_FOLDER).glob("*/params.json"), key=lambda path: path.stat().st_mtime):
        folder = parameters.parent
        reports = _reports(folder / "progress.csv")
        last = reports[-1] if reports else {}
        if (folder / "error.txt").exists() and not last.get("done"):
            now = "failed"
        elif last.get("done"):
            now = "diverged" if last.get("diverged") else "done"
        else:
            now = "running" if state == "running" else "waiting"
        progress.note(folder.name, now, json.loads(parameters.read_text()), reports)
    return state, progress.table(most=None)


def _reports(path: Path) -> list[dict[str, Any]]:
    if not path.exists() or not path.stat().st_size:
        return []
    frame = read_results(path).drop_duplicates("training_iteration", keep="last").sort_values("training_iteration")
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
