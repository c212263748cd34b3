"""Live progress of an experiment: one line per trial, in which the hyperparameters move."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ray_deltastn.training.columns import VALUES, WARNINGS

#: Updates of the table in a second, at most.
REFRESHES = 4


class NotebookTable:
    """A table in the output of a notebook's cell, changed in place.

    Rich's own live display there needs ipywidgets, and prints anew without.

    Args:
        table: what is shown first.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._handle: Any = None
        self._shown = float("-inf")

    def start(self) -> None:
        """Show the table below what the cell has printed so far."""
        self._handle = importlib.import_module("IPython.display").display(self.table, display_id=True)
        self._shown = time.monotonic()

    def update(self, table: Table, refresh: bool = False) -> None:
        """Change the table, unless that was done a moment ago; with `refresh` in any case."""
        moment = time.monotonic()
        if refresh or moment - self._shown >= 1 / REFRESHES:
            self._handle.update(table)
            self._shown = moment

    def stop(self) -> None:
        """Leave the table as it is."""


class Progress(Callback):
    """A table that refreshes in a terminal or a notebook; elsewhere a line per trial every few seconds.

    Args:
        searched: names of the searched options, shown as columns.
        trials: number of trials planned.
        console: where to write.
        every: seconds between a trial's lines where there is no table.
    """

    def __init__(
        self, searched: Sequence[str], trials: int, console: Console | None = None, every: float = 5.0
    ) -> None:
        self.searched = list(searched)
        self.trials = trials
        self.console = console or Console(soft_wrap=True)
        self.every = every
        self._rows: dict[str, dict[str, Any]] = {}
        self._live: Live | NotebookTable | None = None
        self._printed: dict[str, float] = {}
        self._started = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves its callbacks with the experiment; a terminal is not part of that.
        return {"searched": self.searched, "trials": self.trials, "every": self.every}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["searched"], state["trials"], every=state["every"])  # type: ignore[misc]

    def setup(self, *args: Any, **info: Any) -> None:
        """Start the live display (called by Tune)."""
        if self._live is not None:
            return
        if self.console.is_terminal:
            self._live = Live(self._table(), console=self.console, refresh_per_second=REFRESHES)
        elif self.console.is_jupyter and importlib.util.find_spec("IPython") is not None:
            self._live = NotebookTable(self._table())
        if self._live is not None:
            self._live.start()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show the newest report of a trial (called by Tune)."""
        row = self._rows.setdefault(trial.trial_id, {"first": result, "number": len(self._rows) + 1})
        state = "diverged" if result.get("diverged") else "done" if result.get("done") else "running"
        state += ", fell back" if result.get(WARNINGS("damaged_checkpoints")) else ""
        row.update(last=result, config=trial.config, state=state)
        self._show(trial.trial_id, force=bool(result.get("done")))

    def note(self, trial_id: str, state: str, config: dict[str, Any], reports: Sequence[dict[str, Any]]) -> None:
        """Take over a trial from its files: its state, its config and its reports so far."""
        row = self._rows.setdefault(trial_id, {"number": len(self._rows) + 1})
        row.update(state=state, config=config)
        if reports:
            row.update(first=reports[0], last=reports[-1])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show that a trial failed (called by Tune)."""
        row = self._rows.setdefault(trial.trial_id, {"number": len(self._rows) + 1, "config": trial.config})
        row["state"] = "failed"
        self._show(trial.trial_id, force=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Leave the last table on the screen (called by Tune)."""
        self.close()

    def close(self) -> None:
        """Stop the live display."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
            self._live = None

    def _show(self, trial_id: str, force: bool) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=force)
            return
        now = time.monotonic()
        if force or now - self._printed.get(trial_id, -1e9) >= self.every:
            self._printed[trial_id] = now
            names, cells = self._columns(), self._cells(self._rows[trial_id])
            self.console.print("  ".join(f"{n} {c}" for n, c in zip(names, cells, strict=True) if c), highlight=False)

    def _columns(self) -> list[str]:
        return ["trial", "state", "epoch", "valid loss", "best", *self.searched, *self._hyperparameters()]

    def _hyperparameters(self) -> list[str]:
        reports = (row["last"] for row in self._rows.values() if "last" in row)
        return list(VALUES.of(next(reports, {})))[:6]

    def _cells(self, row: dict[str, Any]) -> list[str]:
        last, first = row.get("last", {}), row.get("first", {})
        losses = [f"{last[key]:.4f}" if key in last else "" for key in ("valid_loss", "best_valid_loss")]
        options = [_short(_reach(row.get("config", {}), name)) for name in self.searched]
        began, now = VALUES.of(first), VALUES.of(last)
        moves = [f"{_short(began[n])}→{_short(now[n])}" if n in now else "" for n in self._hyperparameters()]
        return [f"{row['number']}/{self.trials}", row["state"], str(last.get("epoch", "")), *losses, *options, *moves]

    def _table(self) -> Table:
        return self.table(f", {time.monotonic() - self._started:.0f} s")

    def table(self, more: str = "", most: int | None = 20) -> Table:
        """One line per trial.

        Args:
            more: what the title says after the number of trials.
            most: how many trials are shown, the last ones; None for all.
        """
        done = sum(not row["state"].startswith(("running", "waiting")) for row in self._rows.values())
        table = Table(title=f"{done} of {self.trials} trials ended{more}", title_justify="left")
        lines = [self._columns(), *(self._cells(row) for row in list(self._rows.values())[-(most or 0) :])]
        shown = self._fitting(lines)
        for index in shown:
            table.add_column(lines[0][index], justify="right", no_wrap=True)
        for line in lines[1:]:
            table.add_row(*(line[index] for index in shown))
        return table

    def _fitting(self, lines: list[list[str]]) -> list[int]:
        """Columns that fit the terminal; searched options go first, then state and loss, then hyperparameters."""
        widths = [max(map(len, column)) + 3 for column in zip(*lines, strict=True)]
        searched = range(5, 5 + len(self.searched))
        shown = list(range(len(widths)))
        for index in (*reversed(searched), 3, 1, *reversed(shown[searched.stop :])):
            if sum(widths[i] for i in shown) < self.console.width:
                break
            shown.remove(index)
        return shown


def _reach(config: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        config = config.get(part, {}) if isinstance(config, dict) else {}
    return config


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
