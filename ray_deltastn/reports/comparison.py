"""Tables, pictures and one self-contained page from the folder of a comparison."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ray_deltastn.compare.run import RUNS_FOLDER, Asked, gather
from ray_deltastn.compare.tables import Difference, cells, difference_cells, seed_cells, shortfalls, write_tables
from ray_deltastn.reports import comparison_pictures as pictures
from ray_deltastn.reports.page import PAGE, Picture, write_page
from ray_deltastn.tune.config import option_of
from ray_deltastn.tune.folder.layout import LINEAGE_FILE, RESULTS_FILE, SPACE_FILE
from ray_deltastn.tune.folder.results import read_lineage, read_results

#: What the columns of costs hold.
COSTS_TEXT = (
    "Device-seconds are those of training and evaluating inside the trials, all of them together; what the driver "
    "does beside them can slow them down. Wall seconds are a search's on the clock, with all workers, start-up and "
    "searcher; a single run's are its own, on one worker, from its first step."
)


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        asked: what was asked for.
        results: one row per report of every trial, see `gather`.
        per_seed: one row per method and seed, see `outcomes`.
        summary: one row per method, see `summary`.
        differences: paired by seed, see `differences`.
    """

    asked: Asked
    results: pd.DataFrame
    per_seed: pd.DataFrame
    summary: pd.DataFrame
    differences: list[Difference]

    def notes(self) -> list[str]:
        """What a reader should know about these numbers."""
        return shortfalls(self.per_seed, self.asked.methods, self.asked.seeds, self.asked.config.budget)


def write_comparison(out: Path) -> Comparison:
    """Write the tables, the pictures and the page of a comparison, or of as much of it as has ended.

    Raises:
        FileNotFoundError: if the folder holds none, or nothing has ended.
    """
    asked = Asked.read(out)
    # The table of all may be older than the experiments; without these, what is there is all there is.
    results = gather(out, asked) if (out / RUNS_FOLDER).is_dir() else read_results(out / RESULTS_FILE)
    found = Comparison(asked, results, *write_tables(results, out, asked.seeds))
    spaces = sorted([*out.glob(SPACE_FILE), *(out / RUNS_FOLDER).glob(f"*/{SPACE_FILE}")], key=lambda p: len(p.parts))
    copies = out / LINEAGE_FILE
    drawn = pictures.draw(
        results,
        json.loads(spaces[0].read_text()),
        [option_of(name) for name in asked.config.search],
        read_lineage(copies) if copies.exists() else None,
        out,
    )
    _write_page(found, drawn, out)
    return found


def _write_page(found: Comparison, drawn: Collection[str], out: Path) -> None:
    header, rows = cells(found.summary)
    seed_header, seed_rows = seed_cells(found.per_seed)
    shown = [
        (
            "Best validation loss",
            "Over training epochs and over seconds inside the trials, those of all trials together; "
            "the line is the mean over seeds, the band holds all of them; × is where a run ended before its budget.",
            pictures.LOSS,
        ),
        (
            "Hyperparameters",
            "Of the trial that each method and seed chose, over its run; thin lines are constant values. What PBT "
            "copied from another trial is drawn as that trial had it.",
            pictures.SCHEDULES,
        ),
        (
            "Validation and test",
            "Small: every trial at its best; large: the chosen ones. Above the line the test loss is higher than the "
            "validation loss that was searched: the search has fitted the validation set, or the test set is harder.",
            pictures.SCATTER,
        ),
        ("Outer search", "Outer options of every trial and the loss it came to; darker is better.", pictures.OUTER),
    ]
    write_page(
        "compare.html",
        out / PAGE,
        title=out.name,
        task=found.asked.config.task,
        methods=len(found.summary),
        budget=found.asked.config.budget,
        seeds=found.asked.seeds,
        notes=found.notes(),
        header=header,
        rows=rows,
        costs=COSTS_TEXT,
        statement=statement(found),
        differences=[
            difference_cells([one for one in found.differences if one.reference == reference])
            for reference in dict.fromkeys(one.reference for one in found.differences)
        ],
        pictures=[
            Picture(heading, text, out / name, wide=name != pictures.SCATTER)
            for heading, text, name in shown
            if name in drawn
        ],
        seed_header=seed_header,
        seed_rows=seed_rows,
        config=found.asked.config.model_dump_json(indent=2, exclude_unset=True),
    )


def statement(found: Comparison) -> str:
    """What the differences mean, in a few sentences."""
    if found.asked.seeds < 2:
        return "One seed says nothing about noise: these numbers are one run each, and no method is called better."
    if not found.differences:
        return "One method by itself: there is nothing to compare it with."
    rivals = list(dict.fromkeys(one.reference for one in found.differences))
    control = f", those of self-tuned single runs against {rivals[1]} too" if len(rivals) > 1 else ""
    return (
        f"Differences are taken seed by seed against {rivals[0]}{control}, each with its 95 % interval by "
        f"Student's t for {found.asked.seeds} seeds. A method is called lower or higher only if that still holds at "
        f"5 % for all {len(found.differences)} differences together (Holm); otherwise it is within the noise. Seeds "
        "change initial weights, order and search; the data split is the same in all."
    )
