"""Convert nested mappings to flat ones with dotted names, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(nested: Mapping[str, Any], kind: type = object, separator: str = ".") -> dict[str, Any]:
    """Return the values of nested mappings by the names that lead to them, joined by a separator.

    Args:
        nested: mapping of mappings.
        kind: type of the values to return; others are left out.
        separator: text between the names.
    """
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            found |= {f"{name}{separator}{inner}": v for inner, v in flat(value, kind, separator).items()}
        elif isinstance(value, kind):
            found[name] = value
    return found


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted name as nested mappings; the inverse of `flat`."""
    nested: dict[str, Any] = {}
    for name, value in named.items():
        *path, last = name.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return nested


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested mapping in which the values of `over` replace those of `base`; all others are kept."""
    found = dict(base)
    for name, value in over.items():
        inner = found.get(name)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = merged(inner, value)
        found[name] = value
    return found
