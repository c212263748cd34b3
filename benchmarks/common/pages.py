"""Pages with generated tables: the text between two comments is generated from committed records.

    <!-- table: NAME -->
    …
    <!-- end -->

Links to the records follow each table, so every table names its source.
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
        make: function from the contents of the records to Markdown.
        records: paths of the records below `benchmarks/records`.
        missing: text of the page if a record does not exist; empty if all must exist.
    """

    make: Callable[..., str]
    records: tuple[str, ...]
    missing: str = ""

    @property
    def made(self) -> bool:
        """Whether the table is made: all its records exist, or must exist."""
        return not self.missing or all((RECORDS / name).exists() for name in self.records)

    def text(self, page: Path) -> str:
        """The table and the links to its records; the links are relative to the page."""
        if not self.made:
            return self.missing
        found = self.make(*map(load, self.records))
        links = [f"[{name}]({os.path.relpath(RECORDS / name, page.parent)})" for name in self.records]
        return found + (f"\n\nRecord{'s' if len(links) > 1 else ''}: {', '.join(links)}" if links else "")


def load(name: str) -> Any:
    """Content of a record, by its path below `benchmarks/records`."""
    return json.loads((RECORDS / name).read_text(encoding="utf-8"))


def names(text: str) -> list[str]:
    """Names of the tables of a page, in order.

    Raises:
        ValueError: if a table has no end comment, or an end comment has no table.
    """
    found, opened = [], None
    for comment in COMMENT.finditer(text):
        if comment["end"] and opened is None:
            raise ValueError(
                "`<!-- end -->` must follow a `<!-- table: NAME -->`, got an `<!-- end -->` without a table"
            )
        if comment["name"] and opened is not None:
            raise ValueError(f"a table must end with `<!-- end -->`, got none for {opened!r}")
        opened = comment["name"]
        found += [opened] if opened else []
    if opened is not None:
        raise ValueError(f"a table must end with `<!-- end -->`, got none for {opened!r}")
    return found


def generate(page: Path, text: str, tables: Mapping[str, Table]) -> tuple[str, list[str]]:
    """The text of a page with its tables generated again, and the names of the tables that changed.

    Args:
        page: file of the page.
        text: text of the page.
        tables: all known tables, by name.

    Raises:
        ValueError: if a table is unknown or has no end comment, or an end comment has no table.
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
