"""Where in the user's own code an error was raised."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

#: Folders of code that is not the user's: this package, Python and installed packages.
_OTHERS = {
    Path(__file__).resolve().parents[1],
    *(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
}


def place_of(error: BaseException) -> str:
    """The innermost line of the user's own code that an error passed, as ` (FILE:LINE)`; empty if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        if file.is_file() and not _OTHERS.intersection(file.parents):
            return f" ({frame.filename}:{frame.lineno})"
    return ""
