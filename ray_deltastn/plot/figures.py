"""The common style of all pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

BLUE, GREY, ORANGE = "#2563a8", "#9aa3ad", "#c4561d"
#: Colours of several lines in one picture.
COLOURS = (BLUE, ORANGE, "#3f8f3a", "#7b5ea7", "#d1495b", "#00798c", "#8d6748", "#4d565f")


class Drawing(Figure):
    """A figure that a notebook shows if a cell ends with it, also without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, dpi=110)
        return content.getvalue()


def panels(count: int, columns: int = 4, width: float = 3.1, height: float = 2.5) -> tuple[Figure, list[Any]]:
    """Create a figure with panels in rows.

    Args:
        count: number of panels.
        columns: largest number of panels in a row.
        width: width of a panel, in inches.
        height: height of a panel, in inches.

    Returns:
        The figure and its axes, one per panel.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Drawing(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in list(axes.flat)[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat)[:count]


def style(axis: Any, x: str, y: str) -> None:
    """Set the labels of an axis, add a light grid, and remove the top and right lines."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_xlabel(x)
    axis.set_ylabel(y)


def literal(text: str) -> str:
    """A text of a user for a picture; Matplotlib would read what is between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def logarithmic(axis: Any, which: str, values: pd.Series) -> None:
    """Make an axis logarithmic, with plain numbers, if all values are positive."""
    if (values.replace([np.inf, -np.inf], np.nan).dropna() <= 0).any():
        return
    getattr(axis, f"set_{which}scale")("log")
    ruler = getattr(axis, f"{which}axis")
    low, high = getattr(axis, f"get_{which}lim")()
    ruler.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    ruler.set_major_formatter("{x:g}")
    ruler.set_minor_formatter("{x:g}" if high / low < 3 else "")


def legend_below(figure: Figure, axes: list[Any]) -> None:
    """Add one legend for all panels below them."""
    handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(1, int(figure.get_figwidth() / 1.5))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
