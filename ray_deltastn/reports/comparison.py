"""Tables, pictures and one self-contained HTML page of a comparison, from its results folder."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ray_deltastn.compare.asked import Asked
from ray_deltastn.compare.differences import Difference
from ray_deltastn.compare.outcomes import headings
from ray_deltastn.compare.run import gather
from ray_deltastn.compare.tables import (
    cells,
    difference_cells,
    first_columns,
    gain,
    seed_cells,
    shortfalls,
    write_tables,
)
from ray_deltastn.reports import comparison_pictures as pictures
from ray_deltastn.reports.page import Picture, write_page
from ray_deltastn.tune.config import option_of
from ray_deltastn.tune.folder.layout import LINEAGE_FILE, PAGE, RESULTS_FILE, RUNS_FOLDER, SPACE_FILE
from ray_deltastn.tune.folder.results import read_lineage, read_results

#: Explanation of the cost columns.
COSTS_TEXT = (
    "Device-seconds: seconds of training and evaluation inside the trials, summed over all trials. Work of the driver "
    "on the same machine can slow the trials down. Wall seconds: elapsed time. For a search it covers all workers, "
    "start-up and the searcher. For a single run it covers one worker, from its first step."
)


@dataclass(frozen=True)
class Comparison:
    """Results of a comparison.

    Attributes:
        asked: the requested comparison.
        results: one row per report of every trial, see `gather`.
        per_seed: one row per method and seed, see `outcomes`.
        summary: one row per method, see `summary`.
        differences: differences between methods, paired by seed, see `differences`.
    """

    asked: Asked
    results: pd.DataFrame
    per_seed: pd.DataFrame
    summary: pd.DataFrame
    differences: list[Difference]

    @property
    def cost(self) -> str:
        """Text after the budget if epochs of self-tuning methods cost more; otherwise empty."""
        cost = self.asked.config.self_tuned_cost
        return f", of which each epoch of a self-tuning method takes {cost:g}" if cost > 1 else ""

    def notes(self) -> list[str]:
        """Limitations of the results, one line each."""
        budgets = {method: self.asked.config.budget_of(method) for method in self.asked.methods}
        return shortfalls(self.per_seed, budgets, self.asked.seeds)


def write_comparison(out: Path) -> Comparison:
    """Write the tables, the pictures and the page of a comparison; only finished experiments are included.

    Args:
        out: results folder of the comparison.

    Returns:
        The results that the page shows.

    Raises:
        FileNotFoundError: if the folder holds no comparison or no finished experiment.
    """
    asked = Asked.read(out)
    # `results.csv` may be older than the experiments. It is used only if their folders are gone.
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
        asked.config.self_tuned_cost,
    )
    _write_page(found, drawn, out)
    return found


def _write_page(found: Comparison, drawn: Collection[str], out: Path) -> None:
    first = first_columns(found.per_seed)
    left = {name: text for name, text in headings(found.per_seed.columns).items() if name not in first}
    header, rows = cells(found.summary, left)
    seed_header, seed_rows = seed_cells(found.per_seed)
    shown = [
        (
            "Best validation loss",
            "Best validation loss so far, over training epochs and over device-seconds of all trials. The line is the "
            "mean over seeds, and the band covers all seeds. × marks a run that ended before its budget was spent.",
            pictures.LOSS,
        ),
        (
            "Hyperparameters",
            "Hyperparameters of the best trial of each method and seed, over its run. Thin lines are constant values. "
            "If PBT copied the trial from another one, the line before the copy is that of the other trial.",
            pictures.SCHEDULES,
        ),
        (
            "Validation and test",
            "Each point is a trial at its lowest validation loss. A large point is the best trial of a method and "
            "seed. Above the diagonal, the test loss is higher than the validation loss: the search has over-fitted "
            "the validation set, or the test set is harder.",
            pictures.SCATTER,
        ),
        (
            "Outer search",
            "Outer options and best validation loss of every trial. Darker lines have a lower loss.",
            pictures.OUTER,
        ),
    ]
    write_page(
        "compare.html",
        out / PAGE,
        title=out.name,
        task=found.asked.config.task,
        methods=len(found.summary),
        budget=found.asked.config.budget,
        cost=found.cost,
        gained=gain(found.per_seed),
        seeds=found.asked.seeds,
        notes=found.notes(),
        first=cells(found.summary, first, counts=False),
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
    """Text that explains how to read the differences."""
    if found.asked.seeds < 2:
        return "The comparison has one seed, so the noise is unknown. No method can be called better."
    if not found.differences:
        return "The comparison has one method, so there are no differences."
    rivals = list(dict.fromkeys(one.reference for one in found.differences))
    control = f", and for self-tuned single runs also minus {rivals[1]}" if len(rivals) > 1 else ""
    return (
        f"A difference is a method's loss minus that of {rivals[0]}{control}, paired by seed. The value after ± is "
        f"half of its 95 % interval by Student's t with {found.asked.seeds} seeds. A method is called lower or higher "
        f"if its difference is significant at 5 % after Holm's correction for all {len(found.differences)} "
        "differences. Otherwise the difference is within the noise. A seed sets the initial weights, the order of the "
        "data and the search. The data split is the same for all seeds."
    )
