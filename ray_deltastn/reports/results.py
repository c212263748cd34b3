"""The results of an experiment, read from its folder: trials in order, tables and notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from ray_deltastn.plot.sources import read_folder
from ray_deltastn.training.columns import SECONDS, VALUES, WARNINGS
from ray_deltastn.training.tables import ranked
from ray_deltastn.training.tuner import ALL_DONE
from ray_deltastn.tune.config import option_of
from ray_deltastn.tune.folder.layout import CONFIG_FILE, DRIVER_FILE


class Results:
    """Results of an experiment, read from its folder.

    Args:
        folder: results folder of `ray-deltastn run`.

    Raises:
        FileNotFoundError: if the folder holds no finished experiment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: What the pictures draw.
        self.run = read_folder(folder)
        self.config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
        self.space, self.reports = self.run.space, self.run.reports
        self.trials = self._trials()

    def _trials(self) -> pd.DataFrame:
        """One row per trial: its best report by the metric of the search; the best trial comes first."""
        return ranked(self.reports, self.config["tune"]["metric"], self.config["tune"]["mode"])

    @property
    def best(self) -> pd.Series:
        """The best report of all trials by the metric of the search."""
        return self.trials.iloc[0]

    def best_of(self, trial: str) -> pd.Series:
        """The best report of a trial by the metric of the search.

        Raises:
            ValueError: if there is no such trial.
        """
        own = self.trials[self.trials["trial_id"] == trial]
        if own.empty:
            raise ValueError(f"`trial` must be one of {', '.join(self.trials['trial_id'])}, got {trial!r}")
        best: pd.Series = own.iloc[0]
        return best

    @property
    def searched(self) -> list[str]:
        """Names of the searched options."""
        return [option_of(name) for name in self.config["search"]]

    def best_table(self) -> list[tuple[str, str]]:
        """Names and values of the table about the best trial."""
        best = self.best
        rows = [("trial", str(best["trial_id"])), ("epoch", f"{best['epoch']:.0f} of {self._epochs():.0f}")]
        for split in ("valid", "test"):
            for what in ("loss", "accuracy"):
                if f"{split}_{what}" in best:
                    name = {"valid": "validation"}.get(split, split)
                    rows.append((f"{name} {what}", f"{best[f'{split}_{what}']:.4f}"))
        rows += [(name, _number(best[f"config/{name.replace('.', '/')}"])) for name in self.searched]
        if best.get("hyper_steps", 1) > 0:
            return rows + [(f"learned {name}", _number(best[VALUES(name)])) for name in self.space]
        if best[WARNINGS("short_run")] > 0:  # the values are those of the start
            return rows
        shown = {name.removeprefix("hyperparameters.") for name in self.searched}
        return rows + [(name, _number(best[VALUES(name)])) for name in self.space if name not in shown]

    def _epochs(self) -> float:
        return float(self.reports.loc[self.reports["trial_id"] == self.best["trial_id"], "epoch"].max())

    def trial_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table with the best report of each trial, best trial first."""
        columns = {"trial_id": "trial", "epoch": "best epoch", "valid_loss": "validation loss"}
        columns |= {
            key: key.replace("valid_", "validation ").replace("_", " ")
            for key in ("valid_accuracy", "test_loss", "test_accuracy")
            if key in self.trials
        }
        columns |= {f"config/{name.replace('.', '/')}": name for name in self.searched}
        columns |= {VALUES(name): name for name in self.space}
        columns |= {SECONDS("total"): "seconds"}
        return list(columns.values()), [[_number(row[key]) for key in columns] for _, row in self.trials.iterrows()]

    def notes(self) -> list[str]:
        """Limitations and costs of the experiment, one sentence or two each."""
        last = self.reports.sort_values("training_iteration").groupby("trial_id").tail(1)
        notes = []
        if (diverged := int(last["diverged"].astype(bool).sum())) > 0:
            notes.append(f"{diverged} of {len(last)} trials diverged and have an infinite loss.")
        short, still = last[WARNINGS("short_run")] > 0, last.get("hyper_steps", pd.Series(1, last.index)) == 0
        ended = last["stop_reason"] == ALL_DONE if "stop_reason" in last else pd.Series(True, last.index)
        if (idle := int((short & still & ended).sum())) > 0:
            notes.append(
                f"In {idle} of {len(last)} trials λ never moved, because the warm-up took the whole trial. Lower "
                "`train.warmup`, or raise `train.epochs`."
            )
        if (short & ~still).any():
            notes.append("Some trials were too short for λ to cross its range.")
        if (last[WARNINGS("saturated")] > 0).any():
            notes.append("In some trials, a hyperparameter ended where its sigmoid is flat.")
        large = self.reports.get(WARNINGS("large_response"))
        if large is not None and (large > 0).any():
            notes.append("In some trials, the response was larger than the outputs, and so probably wrong.")
        if WARNINGS("damaged_checkpoints") in self.reports:
            passed = self.reports.groupby("trial_id")[WARNINGS("damaged_checkpoints")].max()
            if (fell_back := int((passed > 0).sum())) > 0:
                notes.append(
                    f"{fell_back} of {len(last)} trials found a damaged checkpoint and continued from an earlier one."
                )
        if SECONDS("checkpoint") in last:
            share = last[SECONDS("checkpoint")].sum() / last[[SECONDS("checkpoint"), SECONDS("total")]].sum().sum()
            notes.append(f"Checkpoints took {100 * share:.1f} % of the trials' time.")
        if SECONDS("between") in last:
            share = last[SECONDS("between")].sum() / (last[SECONDS("between")] + last[SECONDS("total")]).sum()
            advice = " A larger `train.steps_per_report` reduces this time." if share > 0.02 else ""
            notes.append(f"Reporting, with checkpoints, took {100 * share:.1f} % of the trials' time.{advice}")
        if (driver := self.folder / DRIVER_FILE).exists():
            seconds = json.loads(driver.read_text())["searcher_seconds"]
            notes.append(f"The searcher took {seconds:.1f} s of the driver's time.")
        return notes


def _number(value: Any) -> str:
    if isinstance(value, (bool, str)):
        return str(value)
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.4g}"
