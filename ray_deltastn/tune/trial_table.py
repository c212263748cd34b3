"""The table of the trials of an experiment: one line per trial, with its hyperparameters at the start and now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.table import Table

from ray_deltastn.tasks.names import name_of
from ray_deltastn.training.columns import VALUES
from ray_deltastn.tune.console import LONGEST, plain
from ray_deltastn.tune.output import one_line


class TrialTable:
    """The trials of an experiment as a table.

    Args:
        searched: names of the searched options, shown as columns.
        trials: number of planned trials.

    Attributes:
        rows: what is known of each trial, by its id: `number`, `state`, `config`, and the `first` and `last` report.
    """

    def __init__(self, searched: Sequence[str], trials: int) -> None:
        self.searched = list(searched)
        self.trials = trials
        self.rows: dict[str, dict[str, Any]] = {}

    def note(self, trial_id: str, state: str, config: dict[str, Any], reports: Sequence[dict[str, Any]]) -> None:
        """Set the state, the config and the reports so far of a trial, as read from files."""
        row = self.rows.setdefault(trial_id, {"number": len(self.rows) + 1})
        row.update(state=state, config=config)
        if reports:
            row.update(first=reports[0], last=reports[-1])

    def columns(self) -> list[str]:
        """Headings of the columns."""
        named = [one_line(name) for name in (*self.searched, *self._hyperparameters())]
        return ["trial", "state", "epoch", "valid loss", "best", *named]

    def _hyperparameters(self) -> list[str]:
        reports = (row["last"] for row in self.rows.values() if "last" in row)
        return list(VALUES.of(next(reports, {})))[:6]

    def cells(self, row: dict[str, Any]) -> list[str]:
        """Values of a row as text, in the order of the columns."""
        last, first = row.get("last", {}), row.get("first", {})
        losses = [f"{last[key]:.4f}" if key in last else "" for key in ("valid_loss", "best_valid_loss")]
        options = [_short(_value_at(row.get("config", {}), name)) for name in self.searched]
        began, now = VALUES.of(first), VALUES.of(last)
        moves = [f"{_short(began[n])}→{_short(now[n])}" if n in now else "" for n in self._hyperparameters()]
        return [f"{row['number']}/{self.trials}", row["state"], str(last.get("epoch", "")), *losses, *options, *moves]

    def table(self, width: int, more: str = "", most: int | None = 20) -> Table:
        """The table with one line per trial.

        Args:
            width: width of the console in characters; it decides which columns fit.
            more: text to add to the title.
            most: largest number of trials to show, the newest ones; None shows all.
        """
        done = sum(not row["state"].startswith(("running", "waiting")) for row in self.rows.values())
        table = Table(title=f"{done} of {self.trials} trials ended{more}", title_justify="left")
        lines = [self.columns(), *(self.cells(row) for row in list(self.rows.values())[-(most or 0) :])]
        shown = self._fitting(lines, width)
        for index in shown:
            table.add_column(plain(lines[0][index]), justify="right", no_wrap=True)
        for line in lines[1:]:
            table.add_row(*(plain(line[index]) for index in shown))
        return table

    def _fitting(self, lines: list[list[str]], width: int) -> list[int]:
        """Columns that fit the terminal; removes searched options first, then loss and state, then hyperparameters."""
        widths = [max(map(cell_len, column)) + 3 for column in zip(*lines, strict=True)]
        searched = range(5, 5 + len(self.searched))
        shown = list(range(len(widths)))
        for index in (*reversed(searched), 3, 1, *reversed(shown[searched.stop :])):
            if sum(widths[i] for i in shown) < width:
                break
            shown.remove(index)
        return shown


def _value_at(config: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        config = config.get(part, {}) if isinstance(config, dict) else {}
    return config


def _short(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.3g}"
    return one_line(name_of(value), LONGEST)
