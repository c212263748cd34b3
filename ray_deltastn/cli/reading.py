"""The YAML file of a command that runs trials. Reading it does not need Ray."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ray_deltastn.compare.plan import CompareConfig
from ray_deltastn.tune.config import ConfigError, ExperimentConfig
from ray_deltastn.tune.reading import load_yaml

#: Kinds of YAML files and their configuration classes.
CLASSES: dict[str, type[ExperimentConfig]] = {"experiment": ExperimentConfig, "comparison": CompareConfig}

#: Commands that run trials and the kinds of their YAML files.
_KIND_OF = {"run": "experiment", "compare": "comparison"}
_A = {"run": "an experiment", "compare": "a comparison"}


def read(options: argparse.Namespace) -> Any:
    """Read the YAML file of a command that runs trials.

    Raises:
        ConfigError: if the file breaks a rule; if it is meant for the other command, the message names that command.
    """
    path = options.config
    try:
        return CLASSES[_KIND_OF[options.command]].read(path, options.set)
    except ConfigError:
        meant = _meant_for(path)
        if meant in (None, options.command):
            raise
        raise ConfigError(
            f"`{path}` must be {_A[options.command]}, got {_A[meant]}; use `ray-deltastn {meant} {path}`"
        ) from None


def _meant_for(path: Path) -> str | None:
    """The command that a YAML file is written for; None if neither can read it."""
    own = CompareConfig.model_fields.keys() - ExperimentConfig.model_fields.keys()
    try:
        if own & load_yaml(path, ()).keys():
            return "compare"
        ExperimentConfig.read(path)
    except ConfigError:
        return None
    return "run"
