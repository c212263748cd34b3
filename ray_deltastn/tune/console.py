"""Output in a terminal: text of users is shown as it is, never read as Rich's markup."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

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
        with contextlib.suppress(OSError, ValueError):
            # Python writes the rest of its buffer when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def one_line(value: Any, longest: int | None = None) -> str:
    """A value as text on one line, with line breaks and control characters as escapes.

    Args:
        value: any value.
        longest: number of characters after which the text is cut off; None for no limit.
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return text if longest is None or len(text) <= longest else f"{text[: longest - 1]}…"


def plain(value: Any) -> Text:
    """A cell or a heading of a table, the same on every console; Rich would read a `str` as markup."""
    return Text(one_line(value))


def replace_unprintable() -> None:
    """Let standard output and error replace the characters that their encoding lacks; otherwise they raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
