"""Output in a terminal: text of users is shown as it is, never read as Rich's markup."""

from __future__ import annotations

from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text

from ray_deltastn.tune.output import one_line, silence

#: Largest number of characters of a value in a table.
LONGEST = 60


class PlainConsole(Console):
    """A console without markup, emoji codes and highlighting; it goes silent if its reader is gone.

    Args:
        **options: options of Rich's `Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def on_broken_pipe(self) -> None:
        """Show nothing more (called by Rich, which would end the process)."""
        self.quiet = True
        silence(cast("TextIO", self.file))


def plain(value: Any) -> Text:
    """A cell or a heading of a table, the same on every console; Rich would read a `str` as markup."""
    return Text(one_line(value))
