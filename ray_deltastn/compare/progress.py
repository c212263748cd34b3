"""Progress of a comparison, read from its files only."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ray_deltastn.compare.asked import Asked
from ray_deltastn.tune.console import plain
from ray_deltastn.tune.folder.layout import CONFIG_FILE, RUNS_FOLDER
from ray_deltastn.tune.folder.log import last_of_each, read_log
from ray_deltastn.tune.status import state_of


def progress(out: Path) -> Table:
    """Table with one line per experiment: its state, trials, epochs and best validation loss so far.

    Args:
        out: results folder of the comparison.

    Raises:
        FileNotFoundError: if the folder holds no comparison.
    """
    table = Table(title="Comparison", title_justify="left")
    for name in ("experiment", "state", "trials", "epochs", "best valid loss"):
        table.add_column(name, justify="left" if name in ("experiment", "state") else "right", overflow="fold")
    for one in Asked.read(out).planned(out):
        folder = out / RUNS_FOLDER / one.name
        state = state_of(folder) if (folder / CONFIG_FILE).exists() else "waiting"
        trials = read_log(folder)
        losses = [report.result["valid_loss"] for reports in trials.values() for report in last_of_each(reports)]
        best = f"{min(losses):.4f}" if losses else "–"
        table.add_row(plain(one.name), state, str(len(trials)), str(len(losses)), best)
    return table
