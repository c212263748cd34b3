"""Every report of every trial, appended to one file by the driver: what results, status and lineage are read from.

Tune's own `progress.csv` and `result.json` are written elsewhere first and copied; a driver killed while it copies can
lose their beginning. This file is only ever appended to, line by line, where the results are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback

from ray_deltastn.tune.folder.layout import LOG_FILE


@dataclass(frozen=True)
class Report:
    """One report of a trial, with the config it was made under."""

    trial_id: str
    result: dict[str, Any]
    config: dict[str, Any]

    @property
    def iteration(self) -> int:
        """Tune's count of the trial's reports."""
        return int(self.result["training_iteration"])


class ReportLog(Callback):
    """Appends each report to `reports.jsonl`, with the trial's config where it is new.

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
        # The result's own: a scheduler may have changed the trial's for its next report.
        config = json.loads(json.dumps(result.get("config", trial.config), default=_plain))
        line: dict[str, Any] = {"trial_id": trial.trial_id}
        if self._configs.get(trial.trial_id) != config:
            line["config"] = self._configs[trial.trial_id] = config
        line["result"] = {key: value for key, value in result.items() if key != "config"}
        # A killed driver may have left half a line: it ends there.
        with self.path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line, default=_plain).encode() + b"\n")


def read_log(folder: Path) -> dict[str, list[Report]]:
    """Trial id → its reports in the order in which they came, repeated ones too; empty without a log.

    Args:
        folder: results folder.
    """
    path = folder / LOG_FILE
    found: dict[str, list[Report]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        trial_id = entry["trial_id"]
        configs[trial_id] = entry.get("config", configs.get(trial_id, {}))
        found.setdefault(trial_id, []).append(Report(trial_id, entry["result"], configs[trial_id]))
    return found


def last_of_each(reports: list[Report]) -> list[Report]:
    """Reports of a trial by iteration; one that was restored takes back what it had reported from there on."""
    kept: list[Report] = []
    for report in reports:
        while kept and kept[-1].iteration >= report.iteration:
            kept.pop()
        kept.append(report)
    return kept


def _plain(value: Any) -> Any:
    """A number of NumPy or PyTorch as Python's own; whatever else JSON does not know, as text."""
    try:
        return value.item()
    except (AttributeError, ValueError, RuntimeError):
        return str(value)
