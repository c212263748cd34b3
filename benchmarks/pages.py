"""Regenerate the tables of the documentation pages from the committed records.

    python -m benchmarks.pages
    python -m benchmarks.pages --check

The command reads `README.md` and all pages below `docs`. With `--check` it writes nothing: it prints the name of every
table that would change, and exits with status 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.pages import DOCS, ROOT, generate
from benchmarks.common.tables import TABLES


def pages() -> list[Path]:
    """The pages that may contain generated tables."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if a table would change"
    )
    options = parser.parse_args(arguments)
    found = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        try:
            new, changed = generate(page, text, TABLES)
        except ValueError as error:
            parser.error(f"{page.relative_to(ROOT)}: {error}")
        found += len(changed)
        for name in changed:
            print(
                f"{page.relative_to(ROOT)}: table `{name}` {'differs from its records' if options.check else 'written'}"
            )
        if changed and not options.check:
            page.write_text(new, encoding="utf-8")
    if options.check and found:
        sys.exit(1)


if __name__ == "__main__":
    main()
