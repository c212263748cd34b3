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
