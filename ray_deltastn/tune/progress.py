"""Live progress of an experiment: one line per trial, with its hyperparameters at the start and now."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ray_deltastn.training.columns import WARNINGS
from ray_deltastn.tune.console import PlainConsole
from ray_deltastn.tune.output import one_line
from ray_deltastn.tune.trial_table import TrialTable

logger = logging.getLogger(__name__)

#: Largest number of updates of the table per second.
REFRESHES = 4


class NotebookTable:
    """A table in the output of a notebook cell, updated in place.

    Rich's live display needs ipywidgets in a notebook. Without them it prints a new table at every update.

    Args:
        table: the first table to show.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._handle: Any = None
        self._shown = float("-inf")

    def start(self) -> None:
        """Show the table below the output of the cell so far."""
        self._handle = importlib.import_module("IPython.display").display(self.table, display_id=True)
        self._shown = time.monotonic()

    def update(self, table: Table, refresh: bool = False) -> None:
        """Replace the table, at most `REFRESHES` times per second; with `refresh`, always."""
        moment = time.monotonic()
        if refresh or moment - self._shown >= 1 / REFRESHES:
            self._handle.update(table)
            self._shown = moment

    def stop(self) -> None:
        """Do nothing; the last table stays in the output."""


def _never_ends_a_run(show: Callable[..., None]) -> Callable[..., None]:
    """Switch the display off after an error in it; Tune would end the experiment."""

    @functools.wraps(show)
    def guarded(self: Progress, *args: Any, **info: Any) -> None:
        if self.broken:
            return
        try:
            show(self, *args, **info)
        except (Exception, SystemExit) as error:  # Rich ends the process if the reader of its output is gone
            self.switch_off(error)

    return guarded


class Progress(Callback):
    """Shows a live table in a terminal or a notebook; elsewhere it prints one line per trial every few seconds.

    An error of the output, such as a closed pipe, ends the display and not the run.

    Args:
        searched: names of the searched options, shown as columns.
        trials: number of planned trials.
        console: output; by default standard output.
        every: seconds between two lines of a trial if there is no table.

    Attributes:
        shown: the table.
        broken: whether the display has ended after an error.
    """

    def __init__(
        self, searched: Sequence[str], trials: int, console: Console | None = None, every: float = 5.0
    ) -> None:
        self.searched = list(searched)
        self.trials = trials
        self.shown = TrialTable(searched, trials)
        self.console = console or PlainConsole(soft_wrap=True)
        self.every = every
        self.broken = False
        self._live: Live | NotebookTable | None = None
        self._printed: dict[str, float] = {}
        self._started = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves its callbacks with the experiment. A console cannot be saved.
        return {"searched": self.searched, "trials": self.trials, "every": self.every}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["searched"], state["trials"], every=state["every"])  # type: ignore[misc]

    @_never_ends_a_run
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

    @_never_ends_a_run
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show the newest report of a trial (called by Tune)."""
        row = self.shown.rows.setdefault(trial.trial_id, {"first": result, "number": len(self.shown.rows) + 1})
        state = "diverged" if result.get("diverged") else "done" if result.get("done") else "running"
        state += ", fell back" if result.get(WARNINGS("damaged_checkpoints")) else ""
        row.update(last=result, config=trial.config, state=state)
        self._show(trial.trial_id, force=bool(result.get("done")))

    @_never_ends_a_run
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show that a trial failed (called by Tune)."""
        row = self.shown.rows.setdefault(trial.trial_id, {"number": len(self.shown.rows) + 1, "config": trial.config})
        row["state"] = "failed"
        self._show(trial.trial_id, force=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Show the last table and stop the live display (called by Tune)."""
        self.close()

    @_never_ends_a_run
    def close(self) -> None:
        """Show the last table and stop the live display."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
            self._live = None

    @_never_ends_a_run
    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(one_line(text), markup=False, emoji=False, highlight=False)

    def switch_off(self, error: BaseException) -> None:
        """Show nothing more, because of an error."""
        self.broken = True
        logger.warning("the display of the progress has ended: %s: %s", type(error).__name__, error)
        live, self._live = self._live, None
        with contextlib.suppress(Exception, SystemExit):
            if live is not None:
                live.stop()

    def _show(self, trial_id: str, force: bool) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=force)
            return
        now = time.monotonic()
        if force or now - self._printed.get(trial_id, -1e9) >= self.every:
            self._printed[trial_id] = now
            names, cells = self.shown.columns(), self.shown.cells(self.shown.rows[trial_id])
            self.say("  ".join(f"{n} {c}" for n, c in zip(names, cells, strict=True) if c))

    def _table(self) -> Table:
        return self.shown.table(self.console.width, f", {time.monotonic() - self._started:.0f} s")
