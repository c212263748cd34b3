"""Tune's loggers, changed to write a report after its trial has been told to continue."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, LoggerCallback, TBXLoggerCallback


class _Later(LoggerCallback):
    """Keeps reports until the driver's step ends; until then a trial would wait for the logger."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[tuple[int, Any, dict[str, Any]]] = []

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Keep a report for later (called by Tune)."""
        self._waiting.append((iteration, trial, dict(result)))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Write the kept reports (called by Tune)."""
        self._write()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Write the reports of an interrupted step (called by Tune)."""
        self._write()

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Write the kept reports and close the trial's files (called by Tune)."""
        self._write()
        super().log_trial_end(trial, failed)

    def _write(self) -> None:
        while self._waiting:  # a report is removed only after it was written
            super().log_trial_result(*self._waiting[0])
            self._waiting.pop(0)


class LaterCSV(_Later, CSVLoggerCallback):
    """Writes `progress.csv`."""


class LaterJson(_Later, JsonLoggerCallback):
    """Writes `result.json`."""


class LaterTensorBoard(_Later, TBXLoggerCallback):
    """Writes TensorBoard's files; this is by far the slowest of the three loggers."""


def loggers() -> list[LoggerCallback]:
    """Loggers of an experiment: CSV, JSON, and TensorBoard if it is installed and not disabled.

    `TUNE_DISABLE_AUTO_CALLBACK_LOGGERS=1` disables TensorBoard.
    """
    found: list[LoggerCallback] = [LaterCSV(), LaterJson()]
    if os.environ.get("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "0") != "1":
        with contextlib.suppress(ImportError):
            found.append(LaterTensorBoard())
    return found
