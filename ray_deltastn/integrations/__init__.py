"""The tuner inside training loops of other libraries; a module needs its library, and is imported when it is used."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_deltastn.integrations import lightning, transformers

if not TYPE_CHECKING:  # type checkers would accept every name

    def __getattr__(name: str) -> ModuleType:
        if name in __all__:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["lightning", "transformers"]
