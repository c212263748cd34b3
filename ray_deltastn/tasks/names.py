"""Names of functions in records and messages: an address in memory says nothing in another process."""

from __future__ import annotations

import functools
from typing import Any


def name_of(value: Any) -> Any:
    """A function or a class as `module:name`, which `find_task` imports; any other value unchanged.

    Args:
        value: any value. A `functools.partial` has the name of its function, with its arguments.

    Examples:
        >>> name_of(name_of), name_of("digits-mlp"), name_of(3)
        ('ray_deltastn.tasks.names:name_of', 'digits-mlp', 3)
    """
    if isinstance(value, functools.partial):
        given = [*map(_shown, (value.func, *value.args)), *(f"{k}={_shown(v)}" for k, v in value.keywords.items())]
        return f"partial({', '.join(given)})"
    if not callable(value):
        return value
    named: Any = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def _shown(value: Any) -> str:
    return str(name_of(value)) if callable(value) else repr(value)
