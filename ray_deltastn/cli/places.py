"""The folders that a command uses."""

from __future__ import annotations

import argparse
from pathlib import Path

from ray_deltastn.tune.folder.code import read_code


def out_of(options: argparse.Namespace) -> Path:
    """Results folder of a command that runs trials."""
    out: Path = options.out or Path("results", options.config.stem)
    return out


def code_of(options: argparse.Namespace) -> list[Path]:
    """Folders that may hold the task's module: that of the YAML file, and the one the command was started in.

    They are put on `sys.path` after this package is imported, so that no file in them hides a library.
    """
    if "config" in options:
        return [options.config.parent, Path.cwd()]
    return [*read_code(options.folder), Path.cwd()] if "folder" in options else []
