"""The examples in docstrings run as they stand, with a small task at hand; none starts a cluster."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ray import tune
from torch import nn

import ray_deltastn as rd
from tests.tune import tiny

PACKAGE = Path(rd.__file__).parent
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages([str(PACKAGE)], "ray_deltastn.")
    if not found.name.endswith("__main__")
]
EXAMPLES = {test.name: test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name):
    torch.manual_seed(0)
    names = {"rd": rd, "torch": torch, "nn": nn, "F": F, "tune": tune, "build": tiny.build, "config": tiny.CONFIG}
    names |= {public: getattr(rd, public) for public in rd.__all__} | {"task": tiny.build({})}
    example = EXAMPLES[name]
    example.globs = names | example.globs
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert not said, "".join(said)


def test_no_example_escapes():
    written = sum(line.strip().startswith(">>>") for path in PACKAGE.rglob("*.py") for line in path.open())
    assert written == sum(len(example.examples) for example in EXAMPLES.values()) > 0
