"""The callback that writes the log `reports.jsonl`, see `ray_deltastn.tune.folder.log`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune import Callback

from ray_deltastn.tasks.names import name_of
from ray_deltastn.tune.folder.layout import LOG_FILE


class ReportLog(Callback):
    """Appends each report to `reports.jsonl`, with the trial's config if it has changed.

    Args:
        folder: results folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG_FILE
        self._configs: dict[str, Any] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Write a line (called by Tune)."""
        # Use the result's config. A scheduler may already have changed the trial's config for the next report.
        config = json.loads(json.dumps(result.get("config", trial.config), default=_plain))
        line: dict[str, Any] = {"trial_id": trial.trial_id}
        if self._configs.get(trial.trial_id) != config:
            line["config"] = self._configs[trial.trial_id] = config
        line["result"] = {key: value for key, value in result.items() if key != "config"}
        # A killed driver may have left an incomplete line. End that line first.
        with self.path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line, default=_plain).encode() + b"\n")


def _plain(value: Any) -> Any:
    """Convert a NumPy or PyTorch number to a Python number, a function to its name, and any other value to text."""
    try:
        return value.item()
    except (AttributeError, ValueError, RuntimeError, TypeError):
        return str(name_of(value))
