"""`ray-deltastn compare`: compare methods on one task with an equal budget of epochs."""

from __future__ import annotations

import argparse
import importlib
import time

from ray_deltastn.cli.places import code_of, out_of
from ray_deltastn.cli.reading import read
from ray_deltastn.tasks.imports import importable


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    started = time.monotonic()
    config = read(options)
    # Ray is imported after the file has been checked, so that a mistake is reported at once.
    trials = importlib.import_module("ray_deltastn.cli.trials")
    code = code_of(options)
    with importable(code):
        trials.comparison(config, out_of(options), options, code, started)
