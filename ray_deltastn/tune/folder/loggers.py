"""Tune's own loggers, writing while the trial already trains on."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, LoggerCallback, TBXLoggerCallback


class _Later(LoggerCallback):
    """Keeps a report until the driver's step ends: by then its trial has been told to go on, and need not wait."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[tuple[int, Any, dict[str, Any]]] = []

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Keep a report for later (called by Tune)."""
        self._waiting.append((iteration, trial, dict(result)))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Write what was kept (called by Tune)."""
        self._write()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Write what an interrupted step has left (called by Tune)."""
        self._write()

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Write what was kept, and close the trial's files (called by Tune)."""
        self._write()
        super().log_trial_end(trial, failed)

    def _write(self) -> None:
        while self._waiting:  # what cannot be written stays for the next time
            super().log_trial_result(*self._waiting[0])
            self._waiting.pop(0)


class LaterCSV(_Later, CSVLoggerCallback):
    """`progress.csv`."""


class LaterJson(_Later, JsonLoggerCallback):
    """`result.json`."""


class LaterTensorBoard(_Later, TBXLoggerCallback):
    """TensorBoard's files, by far the slowest of the three."""


def loggers() -> list[LoggerCallback]:
    """Tune's default loggers; no TensorBoard where it is not installed or Tune's own switch is off."""
    found: list[LoggerCallback] = [LaterCSV(), LaterJson()]
    if os.environ.get("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "0") != "1":
        with contextlib.suppress(ImportError):
            found.append(LaterTensorBoard())
    return found
