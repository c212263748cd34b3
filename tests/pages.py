"""The pages of the documentation, and the blocks of code in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
#: All pages, by their place in the repository.
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code: its page, the number of its first line, and its text."""

    page: str
    line: int
    text: str

    def run(self, names):
        """Run Python code as a user does who types it, with line numbers of the page in errors."""
        exec(compile("\n" * (self.line - 1) + self.text, self.page, "exec"), names)


def text(page):
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, kind="python"):
    """The blocks of a kind on a page, in order."""
    whole = text(page)
    return [
        Block(page, whole[: found.start()].count("\n") + 2, found[2])
        for found in _BLOCK.finditer(whole)
        if found[1] == kind
    ]


def run(page, choose=lambda block: True):
    """Run the Python blocks of a page in order in one namespace, and return it."""
    names = {"__name__": "__main__"}
    for block in blocks(page):
        if choose(block):
            block.run(names)
    return names
