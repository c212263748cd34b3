"""Tables, pictures and one self-contained HTML page of an experiment, from its results folder."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ray_deltastn import domains
from ray_deltastn.maps import MAPS
from ray_deltastn.reports.contact_sheet import NoImagesError, contact_sheet
from ray_deltastn.reports.page import PAGE, Picture, panels, save, style, write_page
from ray_deltastn.tasks import build_task
from ray_deltastn.training.columns import SCALES, SECONDS, VALUES, WARNINGS
from ray_deltastn.tune.config import option_of
from ray_deltastn.tune.folder.layout import CONFIG_FILE, DRIVER_FILE, RESULTS_FILE, SPACE_FILE
from ray_deltastn.tune.folder.results import read_results

SCHEDULES, LOSS, SHEET = "schedules.png", "loss_over_time.png", "augmentation.png"
logger = logging.getLogger(__name__)
_BLUE, _GREY, _ORANGE = "#2563a8", "#9aa3ad", "#c4561d"


class Results:
    """Results of an experiment, read from its folder.

    Args:
        folder: results folder of `ray-deltastn run`.

    Raises:
        FileNotFoundError: if the folder holds no finished experiment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (CONFIG_FILE, SPACE_FILE, RESULTS_FILE):
            if not (folder / name).exists():
                raise FileNotFoundError(f"`{folder}` must hold a finished experiment, got no {name}")
        self.config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
        self.space: dict[str, dict[str, Any]] = json.loads((folder / SPACE_FILE).read_text())
        self.reports = read_results(folder / RESULTS_FILE)
        self.trials = self._trials()

    def _trials(self) -> pd.DataFrame:
        """One row per trial: its best report by the metric of the search; the best trial comes first."""
        # For `best_valid_loss`, the best report is the one with the lowest `valid_loss`.
        metric = self.config["tune"]["metric"].removeprefix("best_")
        sign = 1.0 if self.config["tune"]["mode"] == "min" else -1.0
        ranked = self.reports.assign(_rank=(sign * self.reports[metric]).fillna(math.inf))
        rows = ranked.loc[ranked.groupby("trial_id")["_rank"].idxmin()]
        found: pd.DataFrame = rows.sort_values("_rank", kind="stable").drop(columns="_rank").reset_index(drop=True)
        return found

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
        rows += [(f"learned {name}", _number(best[VALUES(name)])) for name in self.space]
        return rows

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
        if (last[WARNINGS("short_run")] > 0).any():
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


def _band(results: Results, reports: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """s(λ − σ) and s(λ + σ) over the reports of a trial."""
    about = results.space[name]
    # Older folders do not name the map. Their experiments used the paper's.
    named = about.get("map") or getattr(domains, about["kind"])(0.0).map_in("open").name
    s = MAPS[named.removeprefix("rounded ")]
    low, high = (torch.tensor(float(about[key]), dtype=torch.float64) for key in ("low", "high"))
    value = torch.tensor(reports[VALUES(name)].to_numpy(dtype=float))
    scale = torch.tensor(reports[SCALES(name)].to_numpy(dtype=float))
    lam = s.inverse(value, low, high)
    return s.forward(lam - scale, low, high).numpy(), s.forward(lam + scale, low, high).numpy()


def plot_schedules(results: Results) -> Path:
    """Draw each hyperparameter of the best trial over epochs, with the band s(λ ± σ)."""
    reports = results.reports[results.reports["trial_id"] == results.best["trial_id"]].sort_values("steps")
    names = list(results.space)
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        low, high = _band(results, reports, name)
        axis.fill_between(reports["epoch"], low, high, color=_BLUE, alpha=0.18, linewidth=0, label="s(λ ± σ)")
        axis.plot(reports["epoch"], reports[VALUES(name)], color=_BLUE, label="s(λ)")
        axis.set_title(name, fontsize=10)
        if results.space[name]["kind"] == "Positive":
            axis.set_yscale("log")
        style(axis, "epoch", "")
    axes[0].legend(frameon=False, fontsize=8)
    return save(figure, results.folder / SCHEDULES)


def plot_loss(results: Results) -> Path:
    """Draw the validation loss of every trial, and the best loss so far, over seconds inside all trials."""
    reports = results.reports.copy()  # `results.csv` is in order of time
    reports["spent"] = reports.groupby("trial_id")[SECONDS("total")].diff().fillna(reports[SECONDS("total")]).cumsum()
    loss = reports["valid_loss"].replace([np.inf, -np.inf], np.nan)
    figure, (axis,) = panels(1, width=6.4, height=3.8)
    for index, (_, trial) in enumerate(reports.groupby("trial_id", sort=False)):
        axis.plot(
            trial["spent"],
            loss[trial.index],
            color=_GREY,
            alpha=0.55,
            linewidth=0.8,
            label="one trial" if index == 0 else None,
        )
    axis.step(reports["spent"], loss.cummin(), where="post", color=_ORANGE, linewidth=2, label="best so far")
    axis.set_yscale("log")
    # The limit keeps the other trials readable if one diverges.
    axis.set_ylim(top=1.5 * reports.groupby("trial_id")["valid_loss"].first().replace(np.inf, np.nan).max())
    style(axis, "seconds inside trials, summed over trials", "validation loss")
    axis.legend(frameon=False)
    return save(figure, results.folder / LOSS)


def _write_page(results: Results) -> Path:
    """Write `report.html`, which contains the pictures and the tables."""
    header, rows = results.trial_table()
    drawn = [
        ("Schedules", "Hyperparameters of the best trial over its epochs. The band is s(λ ± σ).", SCHEDULES),
        ("Loss over time", "Validation loss of every trial over the seconds spent inside all trials.", LOSS),
        ("Augmentation", "Training images at the low end, the middle and the high end of each range.", SHEET),
    ]
    pictures = [Picture(h, text, results.folder / name, wide=name == SCHEDULES) for h, text, name in drawn]
    return write_page(
        "report.html",
        results.folder / PAGE,
        title=results.folder.name,
        metric=results.config["tune"]["metric"].replace("_", " "),
        best=results.best_table(),
        header=header,
        rows=rows,
        pictures=[picture for picture in pictures if picture.path.exists()],
        notes=results.notes(),
        config=json.dumps(results.config, indent=2),
    )


def draw_augmentation(results: Results) -> None:
    """Draw the contact sheet of a task on images, unless the file exists; it needs the task's data."""
    config, path = results.config, results.folder / SHEET
    if path.exists():
        return
    try:
        task = build_task({"task": config["task"], **config["options"], **config["train"]})
        contact_sheet(task, path)
    except NoImagesError:
        pass
    except (FileNotFoundError, ValueError) as error:  # the task or its data may be missing on this machine
        logger.warning("the augmentation picture could not be drawn: %s", error)


def write_report(folder: Path) -> Results:
    """Write the pictures and the page of an experiment to its results folder.

    Args:
        folder: results folder of `ray-deltastn run`.

    Returns:
        The results that the page shows.

    Raises:
        FileNotFoundError: if the folder holds no finished experiment.
    """
    results = Results(folder)
    plot_schedules(results)
    plot_loss(results)
    draw_augmentation(results)
    _write_page(results)
    return results
