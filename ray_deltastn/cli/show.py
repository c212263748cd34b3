"""The results of an experiment or a comparison in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ray_deltastn.compare.tables import SECOND, cells, first_columns, gain
from ray_deltastn.reports.comparison import Comparison, statement
from ray_deltastn.reports.results import Results
from ray_deltastn.tune.console import plain


def show_comparison(console: Console, found: Comparison) -> None:
    """Show the tables of a comparison, what was gained, and the differences."""
    title = f"Comparison with a budget of {found.asked.config.budget} epochs per method and seed{found.cost}"
    console.print(short_table(title, *cells(found.summary, first_columns(found.per_seed), counts=False)))
    console.print(short_table("Costs", *cells(found.summary, SECOND)))
    told = gain(found.per_seed)
    for line in [
        *([told] if told else []),
        *found.notes(),
        statement(found),
        *(map(str, found.differences) if found.asked.seeds > 1 else []),
    ]:
        console.print(line)


def show_experiment(console: Console, results: Results) -> None:
    """Show an experiment: what matters of the best trial first, then its options and hyperparameters, then notes."""
    header, rows = results.overview(most=1)
    console.print(short_table("Best trial", header, rows))
    table = Table(title="Options and hyperparameters", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in results.best_table():
        table.add_row(plain(name), plain(value))
    console.print(table)
    for note in [*filter(None, [results.gained()]), *results.notes()]:
        console.print(note)


def short_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is a name, narrow enough for 80 characters with five columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(plain(name), justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        table.add_row(*map(plain, row))
    return table
