"""Runs to draw, read from any source: a tuner, a table, a results folder, or what Ray Tune returns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ray_deltastn.space import HyperSpace
from ray_deltastn.training.columns import VALUES
from ray_deltastn.training.file_names import CONFIG_FILE, RESULTS_FILE, SPACE_FILE, experiments_in
from ray_deltastn.training.tables import ranked, read_results
from ray_deltastn.training.tuner import SelfTuner

#: What the pictures accept, besides several of them in a list, or in a mapping from their labels.
KINDS = "a SelfTuner, a results folder, a data frame of reports, or a result of Ray Tune"
#: Names of the columns that say which trial a report belongs to, and in which order reports came.
TRIAL, TIME = "trial_id", "timestamp"


@dataclass(frozen=True)
class Run:
    """A run, or a search with several trials.

    Attributes:
        label: its name in the legend.
        source: what the user gave.
        reports: one row per report of every trial, in order of time, with the column `trial_id`.
        space: kind, map and bounds of each hyperparameter; empty if the source does not have them.
        metric: column of the reports whose best value makes a trial the best one.
        mode: `min` or `max`.
    """

    label: str
    source: Any
    reports: pd.DataFrame
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    metric: str = "valid_loss"
    mode: str = "min"

    @property
    def names(self) -> list[str]:
        """Names of the hyperparameters."""
        return list(self.space) or list(VALUES.of(dict.fromkeys(map(str, self.reports))))

    def best_trial(self) -> str:
        """Id of the best trial.

        Raises:
            ValueError: if the reports do not tell.
        """
        self.require()
        if self.reports[TRIAL].nunique() == 1:
            return str(self.reports[TRIAL].iloc[0])
        self.require(self.metric.removeprefix("best_"))
        return str(ranked(self.reports, self.metric, self.mode).iloc[0][TRIAL])

    def best_reports(self) -> pd.DataFrame:
        """Reports of the best trial, in order of training."""
        own = self.reports[self.reports[TRIAL] == self.best_trial()]
        order = next((name for name in ("steps", "epoch") if name in own), None)
        found: pd.DataFrame = own if order is None else own.sort_values(order, kind="stable")
        return found

    def require(self, *columns: str) -> None:
        """Raise ValueError if there is no report, or with the first of these columns that the reports do not have."""
        if self.reports.empty:
            raise ValueError(f"a run must have at least one report, got none for '{self.label}'")
        for column in columns:
            if column not in self.reports:
                raise ValueError(f"reports must have the column `{column}`, got none for '{self.label}'")


def read(sources: tuple[Any, ...], space: HyperSpace | None = None) -> list[Run]:
    """Runs of one or several sources.

    Args:
        sources: each is one of `KINDS`, a list of them, or a mapping from labels to them.
        space: hyperparameters of the runs whose source does not have them.

    Raises:
        TypeError: if a source is of another kind.
        ValueError: if there is no source.
        FileNotFoundError: if a folder holds no finished experiment.
    """
    given = list(_labelled(sources))
    if not given:
        raise ValueError(f"`sources` must hold at least one run, got none; give {KINDS}")
    about = {} if space is None else about_space(space)
    return [
        _read(source, label or _name(source) or (f"run {number}" if len(given) > 1 else "run"), about)
        for number, (label, source) in enumerate(given, 1)
    ]


def about_space(space: HyperSpace) -> dict[str, dict[str, Any]]:
    """Kind, map, initial value and bounds of each hyperparameter, by name."""
    return {name: p.about(space.domains) for name, p in space.hyperparameters.items()}


def read_folder(folder: Path, label: str = "") -> Run:
    """The run of a results folder.

    Args:
        folder: results folder of `ray-deltastn run`.
        label: name in the legend; by default that of the folder.

    Raises:
        FileNotFoundError: if the folder holds no finished experiment.
    """
    for name in (CONFIG_FILE, SPACE_FILE, RESULTS_FILE):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"`{folder}` must hold a finished experiment, got no {name}{experiments_in(folder)}"
            )
    search = json.loads((folder / CONFIG_FILE).read_text())["tune"]
    space = json.loads((folder / SPACE_FILE).read_text())
    reports = read_results(folder / RESULTS_FILE)
    return Run(label or folder.resolve().name, folder, reports, space, search["metric"], search["mode"])


def _labelled(sources: tuple[Any, ...] | list[Any]) -> Iterator[tuple[str, Any]]:
    for source in sources:
        if isinstance(source, Mapping):
            yield from ((str(label), one) for label, one in source.items())
        elif isinstance(source, tuple | list):
            yield from _labelled(list(source))
        else:
            yield "", source


def _name(source: Any) -> str:
    """The source's own name, if it has one."""
    if isinstance(source, str | os.PathLike):
        return Path(source).resolve().name
    return source.method.name if isinstance(source, SelfTuner) else ""


def _read(source: Any, label: str, about: dict[str, dict[str, Any]]) -> Run:
    if isinstance(source, SelfTuner):
        return Run(label, source, _one_trial(source.history()), about_space(source.space))
    if isinstance(source, pd.DataFrame):
        return Run(label, source, _one_trial(_as_reports(source)), about)
    if isinstance(source, str | os.PathLike):
        return read_folder(Path(source), label)
    tables = _of_tune(source)
    if tables is None:
        raise TypeError(f"a run must be {KINDS}, got {type(source).__name__}")
    frames = [table.assign(**{TRIAL: str(n)}) if TRIAL not in table else table for n, table in enumerate(tables)]
    reports = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if TIME in reports:
        reports = reports.sort_values(TIME, kind="stable", ignore_index=True)
    return Run(label, source, reports, about)


def _of_tune(source: Any) -> list[pd.DataFrame] | None:
    """Reports of each trial in a `ResultGrid`, a `Result` or an `ExperimentAnalysis`; duck typing keeps Ray out."""
    if hasattr(source, "get_best_result"):
        tables = [result.metrics_dataframe for result in source]
    elif hasattr(source, "metrics_dataframe"):
        tables = [source.metrics_dataframe]
    elif hasattr(source, "trial_dataframes"):
        tables = list(source.trial_dataframes.values())
    else:
        return None
    return [table for table in tables if table is not None and len(table)]


def _as_reports(table: pd.DataFrame) -> pd.DataFrame:
    """A table of reports; a schedule has one column per hyperparameter, and the epoch as its index."""
    if table.index.name is None:
        return table
    schedule = table.index.name == "epoch" and not any(str(column) in VALUES for column in table)
    named: pd.DataFrame = table.rename(columns={c: VALUES(str(c)) for c in table}) if schedule else table
    found: pd.DataFrame = named.reset_index()
    return found


def _one_trial(reports: pd.DataFrame) -> pd.DataFrame:
    named: pd.DataFrame = reports.astype({TRIAL: str}) if TRIAL in reports else reports.assign(**{TRIAL: ""})
    return named
