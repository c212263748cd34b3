"""The common style of the pictures, and self-contained HTML pages from templates."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from PIL import Image

from ray_deltastn._version import __version__


@dataclass(frozen=True)
class Picture:
    """A picture on a page.

    Attributes:
        heading: heading above the picture.
        text: explanation of the picture.
        path: PNG file.
        wide: whether the picture keeps a readable width on a phone, where it can be scrolled sideways.
    """

    heading: str
    text: str
    path: Path
    wide: bool = False

    @property
    def least(self) -> int:
        """Smallest width at which the text in the picture is readable, in pixels of the page."""
        with Image.open(self.path) as image:
            width: int = image.width
        return width // 2

    @property
    def data(self) -> str:
        """Content of the file in base64, as it is embedded in the page."""
        return base64.b64encode(self.path.read_bytes()).decode()


def write_page(template: str, path: Path, **values: Any) -> Path:
    """Write a page that needs no other file and no network.

    Args:
        template: file in `templates/`; `templates/page.html` is the common part of all pages.
        path: file to write.
        **values: variables of the template; `pictures` is a list of `Picture`.

    Returns:
        The path.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ray_deltastn.reports"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    path.write_text(environment.get_template(template).render(version=__version__, **values), encoding="utf-8")
    return path


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return the path."""
    figure.savefig(path, dpi=130)
    return path
