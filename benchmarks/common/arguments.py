"""Types of command-line arguments. A wrong argument ends the command with one line before anything runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def whole(least: int = 1) -> Callable[[str], int]:
    """Reader of whole numbers >= `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return value

    return read


def number(
    *, above: float | None = None, least: float | None = None, below: float | None = None, most: float | None = None
) -> Callable[[str], float]:
    """Reader of finite numbers within bounds."""
    bounds = ((">", above), (">=", least), ("<", below), ("<=", most))
    rule = " and".join(f" {sign} {bound:g}" for sign, bound in bounds if bound is not None)

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        good = math.isfinite(value) and (above is None or value > above) and (least is None or value >= least)
        if not (good and (below is None or value < below) and (most is None or value <= most)):
            raise argparse.ArgumentTypeError(f"must be a finite number{rule}, got {text!r}")
        return value

    return read


def several(one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Reader of comma-separated values, each read by `one`."""
    return lambda text: [one(part) for part in text.split(",")]


def prepare(parser: argparse.ArgumentParser, *files: Path | None) -> None:
    """Create the folders of the output files. If this fails, end the command with one line that names the reason."""
    for path in files:
        if path is None:
            continue
        if path.is_dir():
            parser.error(f"`{path}` must be a file to write, got a folder")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"`{path}` must be a file to write, got {error.strerror} for `{error.filename}`")
