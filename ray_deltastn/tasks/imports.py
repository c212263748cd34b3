"""Functions by import string `module:function`, and errors that say where was searched."""

from __future__ import annotations

import difflib
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


def import_function(text: str) -> Callable[..., Any]:
    """The function that an import string names.

    Args:
        text: `"package.module:function"`.

    Raises:
        ValueError: if there is no such module or function, or the module cannot be imported. The message is one line
            and lists where was searched.
        TypeError: if the import string does not name a callable.
    """
    module, _, name = text.partition(":")
    if not all([*module.split("."), *name.split(".")]) or "/" in text or "\\" in text:
        raise ValueError(f"`task` must be 'module:function', got {text!r}{_hint(text)}")
    found: Any = _import(module, text)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key in dir(found) if not key.startswith("_")]
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            where = getattr(found, "__file__", None) or module
            raise ValueError(f"`task` must name a function of its module, got {text!r}: no {part!r} in {where}{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"`task` must name a callable, got {text!r}, a {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def _hint(text: str) -> str:
    """Say what was probably meant by a path such as `folder/mytask.py:build`."""
    module, _, name = text.partition(":")
    parts = module.removesuffix(".py").replace("\\", "/").strip("./").split("/")
    meant = f"{'.'.join(parts)}:{name}"
    return f"; did you mean {meant!r}?" if all(parts) and name and meant != text else ""


def _import(module: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(
                f"`task` must be importable as 'module:function', got {text!r}: no module {error.name!r} in "
                f"{', '.join(searched())} or the installed packages{_hint(text)}"
            ) from error
        raise ValueError(f"`task` must be importable as 'module:function', got {text!r}: {_told(error)}") from error
    except Exception as error:  # the user's module can raise anything
        raise ValueError(f"`task` must be importable as 'module:function', got {text!r}: {_told(error)}") from error


def _told(error: Exception) -> str:
    """One line about an error inside a module, with the line of code that raised it."""
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}"
        message = error.msg
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        where = f"{frames[-1].filename}:{frames[-1].lineno}"
        message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({where})"


def searched() -> list[str]:
    """The folders of `sys.path` that are neither Python's own nor of installed packages."""
    own = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders = [Path(path).resolve() for path in sys.path]
    user = [folder for folder in folders if folder.is_dir() and not any(_within(folder, path) for path in own)]
    return list(dict.fromkeys(map(str, user)))


def _within(folder: Path, installed: Path) -> bool:
    """Whether a folder is one of installed packages, or inside one."""
    return folder == installed or installed in folder.parents


@contextmanager
def importable(folders: Sequence[Path]) -> Iterator[None]:
    """Let modules in these folders be imported; they come before all others, as for a script."""
    before = list(sys.path)
    sys.path[:0] = [str(folder.resolve()) for folder in folders if str(folder.resolve()) not in before]
    try:
        yield
    finally:
        sys.path[:] = before


def home_of(text: str, folders: Sequence[Path]) -> Path | None:
    """The folder from which the module of an import string was imported; None if it is none of these folders.

    Args:
        text: an import string whose module has been imported, or the name of a ready task.
        folders: folders to choose from.
    """
    module = sys.modules.get(text.partition(":")[0])
    file = getattr(module, "__file__", None)
    if file is None or module is None:
        return None
    path = Path(file).resolve()
    depth = module.__name__.count(".") + (path.stem == "__init__")
    return next((folder.resolve() for folder in folders if folder.resolve() == path.parents[depth]), None)
