"""What must hold for a network of a library that a self-tuned run trains as it is."""

import importlib

import pytest

from benchmarks.models.measure import measure
from tests.oracles import RTOL


def require(*packages):
    """Skip a test, or a whole file, without these packages; transformers works with newer releases of PyTorch only."""
    for package in packages:
        found = pytest.importorskip(package)
        if package == "transformers" and not found.is_torch_available():
            pytest.skip("transformers needs a newer PyTorch", allow_module_level=True)


def entries(module, name, *packages):
    """A list of networks of `benchmarks.models`; the file that asks is skipped without its packages."""
    require(*packages)
    return getattr(importlib.import_module(f"benchmarks.models.{module}"), name)


def cases(entries, floors, slow=()):
    """One case for each entry, with the least share of its weights that must respond; 0 if it may be refused."""
    names = [entry.name for entry in entries]
    assert sorted(names) == sorted(floors)
    return [
        pytest.param(entry, floors[entry.name], id=entry.name, marks=[pytest.mark.slow] if entry.name in slow else [])
        for entry in entries
    ]


def check(entry, floor):
    """The network trains, enough of its weights respond, and its response is exact; else it is refused in one line."""
    found = measure(entry)
    assert found.share >= floor, found.gap
    if not found.works:
        assert floor == 0.0, found.reason
        assert found.reason.startswith("ValueError: `model` must have a trainable layer that can respond, got ")
        return
    assert found.linearised < RTOL
    assert found.displaced < RTOL
