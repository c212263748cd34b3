"""Ready tasks by name. Each task is a function of the trial's configuration."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray_deltastn.tasks.imports import import_function
from ray_deltastn.tasks.names import name_of
from ray_deltastn.tasks.ready import READY

if TYPE_CHECKING:
    from ray_deltastn.task import Task


def find_task(task: Any) -> Callable[..., Task]:
    """The function that builds a task.

    Args:
        task: a callable, an import string `"package.module:function"`, or the name of a ready task.

    Raises:
        ValueError: if the name is unknown or the import fails. The message gives the reason and where was searched.
        TypeError: if `task` is neither a callable nor a string, or if the import string does not name a callable.
    """
    if callable(task):
        build: Callable[..., Task] = task
        return build
    if not isinstance(task, str):
        raise TypeError(f"`task` must be a callable, an import string or a ready task's name, got {task!r}")
    if task in READY:
        return import_function(READY[task].function)
    if ":" not in task:
        near = difflib.get_close_matches(task, READY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`task` must be one of {', '.join(READY)} or 'module:function', got {task!r}{hint}")
    return import_function(task)


def build_task(config: Mapping[str, Any], **data: Any) -> Task:
    """Build the task of a trial from its configuration.

    Args:
        config: configuration of the trial; `config["task"]` is the function, or names it.
        data: more arguments of the function, such as those of `tune.with_parameters`.

    Raises:
        ValueError: if `config` has no key `task`, or no task with this name exists.
        TypeError: if the function does not accept `data`, or does not return a `Task`.
    """
    from ray_deltastn.task import Task  # imports PyTorch, which the names of the tasks do not need

    if "task" not in config:
        raise ValueError(f"`config` must hold 'task', got the keys {sorted(config)}")
    build = find_task(config["task"])
    _check_accepts(build, config, data)
    task = build(config, **data)
    if not isinstance(task, Task):
        raise TypeError(f"`task` must build a Task, got {type(task).__name__} from {name_of(config['task'])!r}")
    return task


def _check_accepts(build: Callable[..., Task], config: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raise TypeError if the function of a task cannot be called with the config and these arguments."""
    try:
        signature = inspect.signature(build, follow_wrapped=False)
    except ValueError:  # some callables written in C have no signature
        return
    try:
        signature.bind(config, **data)
    except TypeError as error:
        call = ", ".join(["config", *(f"{name}={name}" for name in data)])
        name = getattr(build, "__name__", repr(build))
        raise TypeError(f"`task` must be callable as `{name}({call})`, got `{name}{signature}`: {error}") from None
