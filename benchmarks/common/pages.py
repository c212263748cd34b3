"""Pages with generated tables: what lies between two comments is written by a function of committed records.

    <!-- table: NAME -->
    …
    <!-- end -->

The table is followed by links to its records, so a table never stands without its source.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "records"
DOCS = ROOT / "docs"
COMMENT = re.compile(r"^<!-- (?:table: (?P<name>\S+)|(?P<end>end)) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Args:
        make: takes the contents of the records and returns Markdown.
        records: paths below `benchmarks/records`.
    """

    make: Callable[..., str]
    records: tuple[str, ...]

    def text(self, page: Path) -> str:
        """The table and the links to its records, for a page."""
        found = self.make(*map(load, self.records))
        links = [f"[{name}]({os.path.relpath(RECORDS / name, page.parent)})" for name in self.records]
        return found + (f"\n\nRecord{'s' if len(links) > 1 else ''}: {', '.join(links)}" if links else "")


def load(name: str) -> Any:
    """Content of a record, by its path below `benchmarks/records`."""
    return json.loads((RECORDS / name).read_text(encoding="utf-8"))


def names(text: str) -> list[str]:
    """Names of the tables of a page, in their order.

    Raises:
        ValueError: if a table has no end, or an end no table.
    """
    found, opened = [], None
    for comment in COMMENT.finditer(text):
        if comment["end"] and opened is None:
            raise ValueError("`<!-- end -->` must follow a `<!-- table: NAME -->`, got one without")
        if comment["name"] and opened is not None:
            raise ValueError(f"a table must end with `<!-- end -->`, got none for {opened!r}")
        opened = comment["name"]
        found += [opened] if opened else []
    if opened is not None:
        raise ValueError(f"a table must end with `<!-- end -->`, got none for {opened!r}")
    return found


def generate(page: Path, text: str, tables: Mapping[str, Table]) -> tuple[str, list[str]]:
    """The text of a page with its tables written anew, and the names of those that changed.

    Args:
        page: its file.
        text: what it holds.
        tables: all that there are, by name.

    Raises:
        ValueError: if a table is not known, has no end, or an end has no table.
    """
    for name in names(text):
        if name not in tables:
            raise ValueError(f"`table` must be one of {', '.join(tables)}, got {name!r}")
    changed: list[str] = []

    def written(match: re.Match[str]) -> str:
        name = match["name"]
        now = f"<!-- table: {name} -->\n\n{tables[name].text(page)}\n\n<!-- end -->"
        if now != match[0]:
            changed.append(name)
        return now

    whole = re.compile(r"^<!-- table: (?P<name>\S+) -->$.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
    return whole.sub(written, text), changed
