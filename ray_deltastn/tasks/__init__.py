"""Ready tasks by name. Each task is a function of the trial's configuration."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ray_deltastn.task import Task
from ray_deltastn.tasks.digits import digits_mlp
from ray_deltastn.tasks.images import cifar10_alexnet, cifar10_resnet18, cifar10_vgg16, fashion_cnn, mnist_mlp
from ray_deltastn.tasks.mnist1d import mnist1d_mlp
from ray_deltastn.tasks.names import name_of

READY: dict[str, Callable[[Mapping[str, Any]], Task]] = {
    "digits-mlp": digits_mlp,
    "mnist1d-mlp": mnist1d_mlp,
    "mnist-mlp": mnist_mlp,
    "fashion-cnn": fashion_cnn,
    "cifar10-alexnet": cifar10_alexnet,
    "cifar10-vgg16": cifar10_vgg16,
    "cifar10-resnet18": cifar10_resnet18,
}


def find_task(task: Any) -> Callable[[Mapping[str, Any]], Task]:
    """The function that builds a task.

    Args:
        task: a callable, an import string `"package.module:function"`, or the name of a ready task.

    Raises:
        ValueError: if the name is unknown or the import fails. The message gives the name and the reason.
        TypeError: if `task` is neither a callable nor a string, or if the import string does not name a callable.
    """
    if callable(task):
        build: Callable[[Mapping[str, Any]], Task] = task
        return build
    if not isinstance(task, str):
        raise TypeError(f"`task` must be a callable, an import string or a ready task's name, got {task!r}")
    if task in READY:
        return READY[task]
    if ":" not in task:
        near = difflib.get_close_matches(task, READY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`task` must be one of {', '.join(READY)} or 'module:function', got {task!r}{hint}")
    module, _, name = task.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`task` must be importable as 'module:function', got {task!r}: {error}") from error
    if not callable(found):
        raise TypeError(f"`task` must name a callable, got {task!r}, a {type(found).__name__}")
    imported: Callable[[Mapping[str, Any]], Task] = found
    return imported


def build_task(config: Mapping[str, Any]) -> Task:
    """Build the task of a trial from its configuration.

    Raises:
        ValueError: if `config` has no key `task`, or no task with this name exists.
        TypeError: if the function does not return a `Task`.
    """
    if "task" not in config:
        raise ValueError(f"`config` must hold 'task', got the keys {sorted(config)}")
    task = find_task(config["task"])(config)
    if not isinstance(task, Task):
        raise TypeError(f"`task` must build a Task, got {type(task).__name__} from {name_of(config['task'])!r}")
    return task
