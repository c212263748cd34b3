"""Cells and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

MISSING = "–"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table.

    Args:
        header: headings of the columns.
        rows: cells of each row, one per heading.
        left: number of columns that are aligned to the left; the other columns are aligned to the right.

    Raises:
        ValueError: if a row has more or fewer cells than the header.
    """
    wrong = [row for row in rows if len(row) != len(header)]
    if wrong:
        raise ValueError(f"`{len(header)} cells in each row` must hold, got {len(wrong[0])} in {wrong[0]}")
    rule = ["---" if column < left else "--:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def fixed(value: float | None, digits: int) -> str:
    """A number with `digits` decimals; a dash for None."""
    return MISSING if value is None else f"{value:.{digits}f}"


def significant(value: float) -> str:
    """A number with three significant digits, or two if it is below 1."""
    return f"{value:#.{3 if abs(value) >= 1 else 2}g}".rstrip(".")


def signed(value: float, digits: int) -> str:
    """A difference with its sign; a difference that is rounded to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def around(mean: float, error: float | None, digits: int) -> str:
    """A difference and its error or half of its interval, for example `+0.012 ± 0.003`."""
    return signed(mean, digits) + ("" if error is None else f" ± {error:.{digits}f}")


def between(values: Sequence[float], digits: int) -> str:
    """Smallest and largest value; one number if both have the same text."""
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return least if least == most else f"{least} – {most}"
