"""`ray-deltastn init`: write a task of the user's own, and a YAML file that runs it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from importlib.resources import files
from pathlib import Path

from ray_deltastn.tune.console import PlainConsole
from ray_deltastn.tune.output import one_line


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: if the name cannot be imported as a module, or belongs to another one.
        FileExistsError: if one of the files exists; then none is written.
        FileNotFoundError: if their folder does not exist.
    """
    script: Path = options.file
    config = script.with_suffix(".yaml")
    _check_name(script)
    for path in (script, config):
        if path.exists():
            raise FileExistsError(f"`{path}` must not exist: no file is overwritten")
    if not script.parent.is_dir():
        raise FileNotFoundError(f"`{script.parent}` must be a folder, got none")
    templates = files("ray_deltastn.cli") / "templates"
    for path in (script, config):
        text = (templates / f"task{path.suffix}.txt").read_text(encoding="utf-8")
        path.write_text(text.replace("my_task", script.stem), encoding="utf-8")
    command = f"ray-deltastn run {config}"
    PlainConsole(soft_wrap=True).print(one_line(f"wrote {script} and {config}; run them with `{command}`"))


def _check_name(script: Path) -> None:
    if script.suffix != ".py" or not script.stem.isidentifier():
        raise ValueError(f"`FILE` must be a Python file that can be imported, such as my_task.py, got {str(script)!r}")
    taken = script.stem in sys.stdlib_module_names or importlib.util.find_spec(script.stem) is not None
    if taken and not script.exists():
        raise ValueError(f"`FILE` must not have the name of another module, got {script.name!r}")
