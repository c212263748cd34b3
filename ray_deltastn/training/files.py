"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A draft beside a file, which takes the file's place at the end; after an exception it is removed.

    Args:
        path: the file; until the end it stays as it was.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with written_whole(folder / "state.pt") as draft:
        ...     torch.save({"steps": 3}, draft)
        >>> [path.name for path in folder.iterdir()]
        ['state.pt']
    """
    # The process is part of the name: two processes that write the same file must not share a draft.
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        yield draft
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
