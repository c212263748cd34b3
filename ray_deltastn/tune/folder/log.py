"""The log `reports.jsonl`: the driver appends every report of every trial, one line each.

Results, status and lineage are read from this file. Tune writes `progress.csv` and `result.json` in another folder and
then copies them: if the driver is killed during the copy, the first lines can be lost. The log is only appended to, in
the results folder itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback

from ray_deltastn.tasks.names import name_of
from ray_deltastn.tune.folder.layout import LOG_FILE


@dataclass(frozen=True)
class Report:
    """One report of a trial, with the trial's config at that time."""

    trial_id: str
    result: dict[str, Any]
    config: dict[str, Any]

    @property
    def iteration(self) -> int:
        """Tune's number of the report within the trial, from 1."""
        return int(self.result["training_iteration"])


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


def read_log(folder: Path) -> dict[str, list[Report]]:
    """Read the log.

    Args:
        folder: results folder.

    Returns:
        The reports of each trial by its id, in order of arrival, with repeated ones; empty if there is no log.
    """
    path = folder / LOG_FILE
    found: dict[str, list[Report]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the driver was killed while it wrote this line
        trial_id = entry["trial_id"]
        configs[trial_id] = entry.get("config", configs.get(trial_id, {}))
        found.setdefault(trial_id, []).append(Report(trial_id, entry["result"], configs[trial_id]))
    return found


def last_of_each(reports: list[Report]) -> list[Report]:
    """Remove the reports that a restored trial replaced: a report replaces all earlier ones from its iteration on.

    Args:
        reports: reports of one trial in order of arrival.
    """
    kept: list[Report] = []
    for report in reports:
        while kept and kept[-1].iteration >= report.iteration:
            kept.pop()
        kept.append(report)
    return kept


def _plain(value: Any) -> Any:
    """Convert a NumPy or PyTorch number to a Python number, a function to its name, and any other value to text."""
    try:
        return value.item()
    except (AttributeError, ValueError, RuntimeError, TypeError):
        return str(name_of(value))
