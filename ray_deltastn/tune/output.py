"""Standard output and error that no text and no closed pipe makes fail."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast


def one_line(value: Any, longest: int | None = None) -> str:
    """A value as text on one line, with line breaks and control characters as escapes.

    Args:
        value: any value.
        longest: number of characters after which the text is cut off; None for no limit.
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return text if longest is None or len(text) <= longest else f"{text[: longest - 1]}…"


class _Lasting:
    """A stream that goes silent if its reader or its device is gone; otherwise it is the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(stream: TextIO) -> None:
    """Send the rest of a stream, which Python writes when it exits, to nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Context in which no text and no closed pipe makes a write to standard output or error fail, Tune's own included.

    Characters that the encoding of the output lacks become `?`.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Python has no streams if it runs without a console on Windows.
    sys.stdout, sys.stderr = (cast("TextIO", stream and _Lasting(stream)) for stream in before)
    try:
        yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        sys.stdout, sys.stderr = before
