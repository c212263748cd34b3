"""A readable config for Tune's loggers: functions appear as `module:function` instead of an address in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ray.tune import Callback
from ray.tune.logger import LoggerCallback


class ReadableConfig(LoggerCallback):
    """Gives a logger the config of each trial as plain values, such as `task = mymodule:build`.

    It changes nothing but what the logger sees. For example
    `tune.RunConfig(callbacks=[rd.ReadableConfig(MLflowLoggerCallback(experiment_name="digits"))])`.

    Args:
        logger: a logger for Tune, such as `MLflowLoggerCallback` or `WandbLoggerCallback`.

    Raises:
        TypeError: if `logger` is not a callback of Tune.
    """

    def __init__(self, logger: Callback) -> None:
        if not isinstance(logger, Callback):
            raise TypeError(f"`logger` must be a callback of Tune, got {logger!r}")
        self.logger = logger

    def setup(self, *args: Any, **info: Any) -> None:
        """Set the logger up (called by Tune)."""
        self.logger.setup(*args, **info)

    def get_state(self) -> Any:
        """The logger's state (called by Tune)."""
        return self.logger.get_state()

    def set_state(self, state: Any) -> None:
        """Restore the logger's state (called by Tune)."""
        self.logger.set_state(state)


def _forward(name: str) -> Callable[..., None]:
    """A hook that calls the logger's hook of the same name with readable arguments."""

    @functools.wraps(getattr(Callback, name))
    def hook(self: ReadableConfig, *args: Any, **info: Any) -> None:
        getattr(self.logger, name)(*map(_seen, args), **{key: _seen(value) for key, value in info.items()})

    return hook


for _name in vars(Callback):
    if _name.startswith("on_"):
        setattr(ReadableConfig, _name, _forward(_name))


class _Trial:
    """A trial as a logger sees it: the same in all but its config."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    @property
    def config(self) -> Any:
        return readable(self._trial.config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def __str__(self) -> str:
        return str(self._trial)

    def __hash__(self) -> int:
        return hash(self._trial)

    def __eq__(self, other: object) -> bool:
        return bool(self._trial == (other._trial if isinstance(other, _Trial) else other))


def _seen(argument: Any) -> Any:
    """What a logger gets instead of an argument of a hook: trials and results with a readable config."""
    if hasattr(argument, "trial_id") and hasattr(argument, "config"):
        return _Trial(argument)
    if isinstance(argument, list):
        return [_seen(one) for one in argument]
    if isinstance(argument, dict) and isinstance(argument.get("config"), Mapping):
        return {**argument, "config": readable(argument["config"])}
    return argument


def readable(value: Any) -> Any:
    """A value of a config as plain values.

    Numbers, texts, mappings and sequences stay. A function or class becomes `module:name`, and another object its text,
    or `module:Class` if the text would be an address.

    Args:
        value: config of a trial, or a part of it.
    """
    if isinstance(value, Mapping):
        return {str(key): readable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [readable(inner) for inner in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, functools.partial):
        return readable(value.func)
    named = value if hasattr(value, "__qualname__") else type(value)
    text = str(value)
    return f"{named.__module__}:{named.__qualname__}" if named is value or " at 0x" in text else text
