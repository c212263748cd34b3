"""Pictures and pages: how all of them look, and one self-contained HTML file from a template."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from PIL import Image

from ray_deltastn._version import __version__

PAGE = "report.html"


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
        heading: above it.
        text: what it shows, in a sentence.
        path: PNG file.
        wide: keeps its width on a phone, where it is scrolled sideways.
    """

    heading: str
    text: str
    path: Path
    wide: bool = False

    @property
    def least(self) -> int:
        """Pixels of the page below which its text could not be read."""
        with Image.open(self.path) as image:
            width: int = image.width
        return width // 2

    @property
    def data(self) -> str:
        """The file in base64, as it stands in the page."""
        return base64.b64encode(self.path.read_bytes()).decode()


def write_page(template: str, path: Path, **values: Any) -> Path:
    """Write a page that needs no other file and no network.

    Args:
        template: file in `templates/`; what all pages share is in `templates/page.html`.
        path: of the page.
        **values: what the template reads; `pictures` is a list of `Picture`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ray_deltastn.reports"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    path.write_text(environment.get_template(template).render(version=__version__, **values), encoding="utf-8")
    return path


def panels(count: int, columns: int = 4, width: float = 3.1, height: float = 2.5) -> tuple[Figure, list[Any]]:
    """A figure and its axes, so many of them, in rows."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in list(axes.flat)[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat)[:count]


def style(axis: Any, x: str, y: str) -> None:
    """Axis labels, a faint grid, no box."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_xlabel(x)
    axis.set_ylabel(y)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=130)
    return path
