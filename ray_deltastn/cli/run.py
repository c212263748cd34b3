"""`ray-deltastn run` and `compare`: run an experiment, or compare methods, from a YAML file, and write the report."""

from __future__ import annotations

import argparse
import importlib
import time

from ray_deltastn.cli.places import code_of, out_of
from ray_deltastn.cli.reading import read
from ray_deltastn.tasks.imports import importable


def run(options: argparse.Namespace) -> None:
    """Run one of the two commands."""
    started = time.monotonic()
    config = read(options)
    # Ray is imported after the file has been checked, so that a mistake is reported at once.
    trials = importlib.import_module("ray_deltastn.cli.trials")
    code = code_of(options)
    start = {"run": trials.experiment, "compare": trials.comparison}[options.command]
    with importable(code):
        start(config, out_of(options), options, code, started)
