"""The results of an experiment, read from its folder: trials in order, tables and notes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from ray_deltastn.compare.outcomes import shown_metrics
from ray_deltastn.compare.tables import number
from ray_deltastn.plot.sources import read_folder
from ray_deltastn.training.columns import COVERAGE, SECONDS, VALUES, WARNINGS
from ray_deltastn.training.tables import ranked
from ray_deltastn.training.tuner import ALL_DONE
from ray_deltastn.tune.config import option_of
from ray_deltastn.tune.folder.layout import CONFIG_FILE, CONTROL_FOLDER, DRIVER_FILE, RESULTS_FILE


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

    @property
    def control(self) -> Results | None:
        """Results of the control; None if there is none, or it has not ended."""
        folder = self.folder / CONTROL_FOLDER
        return Results(folder) if (folder / RESULTS_FILE).exists() else None

    def overview(self, most: int | None = None) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the short table: what matters of each trial, best trial first, and of the control.

        Args:
            most: largest number of trials; by default all.
        """
        columns = self._measured()
        trials = [row for _, row in self.trials.head(len(self.trials) if most is None else most).iterrows()]
        rows = [[str(row["trial_id"]), *(_short(row[key], key) for key in columns)] for row in trials]
        if (control := self.control) is not None:
            rows.append(["control", *(_short(control.best.get(key, math.nan), key) for key in columns)])
        return ["trial", *columns.values()], rows

    def _measured(self) -> dict[str, str]:
        """Columns of the short table with their headings."""
        metric = self.config["tune"]["metric"].removeprefix("best_")
        known = {"valid_loss": "valid loss", "test_loss": "test loss"}
        known[metric] = known.get(metric, metric.replace("_", " "))
        accuracy = "test_accuracy" if "test_accuracy" in self.trials else "valid_accuracy"
        known |= {accuracy: "accuracy"}
        for key, heading in shown_metrics(map(str, self.trials)).items():
            known.setdefault(key, heading)
        known |= {SECONDS("total"): "seconds"}
        return {key: heading for key, heading in known.items() if key in self.trials}

    def gained(self) -> str:
        """One sentence: what tuning has gained against the control, or that it has gained nothing; empty without one.

        The losses or scores are those on the test data if there are any, else those on the validation data. A gain on
        the validation data alone is partly a choice among trials.
        """
        control = self.control
        if control is None:
            return ""
        name, better = self._outcome()
        what = name.replace("valid_", "validation ").replace("_", " ")
        ours, theirs = float(self.best[name]), float(control.best[name])
        total = SECONDS("total")
        known = total in self.best and total in control.best
        spent = [f" after {number(one[total], 'seconds')} s" if known else "" for one in (self.best, control.best)]
        if not math.isfinite(theirs):
            return f"The control without tuning diverged; the {what} of the best trial is {ours:.4f}{spent[0]}."
        if better * (ours - theirs) > 0:
            share = f", {abs(ours / theirs - 1):.1%} {'lower' if better < 0 else 'higher'}" if theirs else ""
            head = f"Tuning gained: the {what} is {ours:.4f}{spent[0]}{share} than"
            return f"{head} that of the control without tuning, {theirs:.4f}{spent[1]}."
        return (
            f"Tuning gained nothing: the {what} is {ours:.4f}{spent[0]}, and that of the control without tuning is "
            f"{theirs:.4f}{spent[1]}."
        )

    def _outcome(self) -> tuple[str, float]:
        """The number by which tuning is judged, and 1 if a larger one is better, else −1."""
        metric = self.config["tune"]["metric"].removeprefix("best_")
        test = metric.replace("valid_", "test_")
        sign = -1.0 if self.config["tune"]["mode"] == "min" else 1.0
        return (test if test in self.trials else metric), sign

    def best_table(self) -> list[tuple[str, str]]:
        """Names and values of the options and hyperparameters of the best trial."""
        best = self.best
        rows = [("best epoch", f"{best['epoch']:.0f} of {self._epochs():.0f}")]
        if "valid_accuracy" in best and "test_accuracy" in best:
            rows.append(("validation accuracy", f"{best['valid_accuracy']:.4f}"))
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
        """Header and rows of the second table: options and hyperparameters of each trial, best trial first."""
        columns = {"trial_id": "trial", "epoch": "best epoch"}
        if "valid_accuracy" in self.trials and "test_accuracy" in self.trials:
            columns |= {"valid_accuracy": "validation accuracy"}
        columns |= {f"config/{name.replace('.', '/')}": name for name in self.searched}
        columns |= {VALUES(name): name for name in self.space}
        return list(columns.values()), [[_number(row[key]) for key in columns] for _, row in self.trials.iterrows()]

    def _coverage(self) -> str:
        """The share of the best trial's weights that respond, and the largest part of the others; empty if unknown."""
        best = self.best
        share, gap = best.get(COVERAGE("share"), 0.0), best.get(COVERAGE("largest_gap"))
        if not share > 0:  # no response, or the results of an older version
            return ""
        rest = f" The largest part that does not is {gap}." if isinstance(gap, str) and gap else ""
        return f"{100 * share:.1f} % of the trainable weights respond to the hyperparameters.{rest}"

    def notes(self) -> list[str]:
        """Limitations and costs of the experiment, one sentence or two each."""
        last = self.reports.sort_values("training_iteration").groupby("trial_id").tail(1)
        notes = []
        if (diverged := int(last["diverged"].astype(bool).sum())) > 0:
            notes.append(f"{diverged} of {len(last)} trials diverged and have an infinite loss.")
        if line := self._coverage():
            notes.append(line)
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


def _short(value: Any, column: str) -> str:
    """A number of the short table."""
    if not math.isfinite(value):
        return "–"
    return number(value, column)


def _number(value: Any) -> str:
    if isinstance(value, (bool, str)):
        return str(value)
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.4g}"
