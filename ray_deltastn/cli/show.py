"""The results of an experiment or a comparison in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ray_deltastn.compare.tables import SHORT, cells, gain
from ray_deltastn.reports.comparison import Comparison, statement
from ray_deltastn.reports.results import Results
from ray_deltastn.tune.console import plain


def show_comparison(console: Console, found: Comparison) -> None:
    """Show the table of a comparison, what was gained, and the differences."""
    header, rows = cells(found.summary, SHORT)
    title = f"Comparison with a budget of {found.asked.config.budget} epochs per method and seed{found.cost}"
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=name == "method")
    for row in rows:
        table.add_row(*map(plain, row))
    console.print(table)
    told = gain(found.per_seed)
    for line in [
        *([told] if told else []),
        *found.notes(),
        statement(found),
        *(map(str, found.differences) if found.asked.seeds > 1 else []),
    ]:
        console.print(line)


def show_experiment(console: Console, results: Results) -> None:
    """Show the best trial of an experiment, and notes."""
    table = Table(title="Best trial", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in results.best_table():
        table.add_row(plain(name), plain(value))
    console.print(table)
    for note in results.notes():
        console.print(note)
