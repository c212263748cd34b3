"""JSON schemas of the YAML files; they tell editors every key, its type and its allowed values."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel

from ray_deltastn.methods import MethodName
from ray_deltastn.training.presets import PRESETS
from ray_deltastn.training.settings import Settings
from ray_deltastn.tune.config import ExperimentConfig, TuneSection
from ray_deltastn.tune.search.texts import DOMAINS

_ENTRY = re.compile(r"^    (\w+): (.+(?:\n     +\S.*)*)", re.MULTILINE)


def schema(kind: type[ExperimentConfig]) -> dict[str, Any]:
    """JSON schema of a configuration file.

    Args:
        kind: `ExperimentConfig` or a subclass.
    """
    found = kind.model_json_schema()
    properties = _described(found["properties"], ExperimentConfig, kind)
    section = found["$defs"]["TuneSection"]
    section.update(properties=_described(section["properties"], TuneSection), description="How the trials are run.")
    options = _options()
    domain = {"type": "string", "pattern": rf"^\s*({'|'.join(DOMAINS)})\(.*\)\s*$"}
    searched = {
        name: {**domain, "description": option.get("description", "")}
        for name, option in options["properties"].items()
        if name != "hyperparameters"
    }
    properties["train"] |= options
    properties["search"] = {
        "description": properties["search"]["description"],
        "type": "object",
        "properties": {**searched, "hyperparameters": {"const": "all"}},
        "patternProperties": {r"^(options|hyperparameters|schedule)\.": domain},
        "additionalProperties": False,
    }
    if "self_tuned" in properties:
        properties["self_tuned"] |= options
        properties.pop("control")  # a comparison has a control of its own
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.__name__,
        "type": "object",
        "properties": properties,
        "required": found["required"],
        "additionalProperties": False,
        "$defs": {"TuneSection": section},
    }


def _options() -> dict[str, Any]:
    """Schema of `train`: the options of `Settings`."""
    found = _described(Settings.model_json_schema()["properties"], Settings)
    found["method"] = {"enum": list(get_args(MethodName)), "description": found["method"]["description"]}
    for name in PRESETS["paper"]:
        found[name].pop("default")  # the preset sets the default
    return {"type": "object", "properties": found, "additionalProperties": False}


def _described(properties: dict[str, Any], *kinds: type[BaseModel]) -> dict[str, Any]:
    """Properties with their descriptions, taken from the docstrings of the classes."""
    texts = {name: " ".join(text.split()) for kind in kinds for name, text in _ENTRY.findall(_doc(kind))}
    plain = {n: {k: v for k, v in one.items() if k != "title"} for n, one in properties.items()}
    return {name: {**one, "description": texts[name]} for name, one in plain.items()}


def _doc(kind: type[BaseModel]) -> str:
    return re.sub(r"^    ", "", kind.__doc__ or "", flags=re.MULTILINE)
