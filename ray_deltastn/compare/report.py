"""Tables, pictures and one self-contained page from the folder of a comparison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ray_deltastn.compare import pictures
from ray_deltastn.compare.plan import CompareConfig
from ray_deltastn.compare.run import COMPARISON_FILE
from ray_deltastn.compare.tables import Difference, cells, difference_cells, differences, seed_cells, write_tables
from ray_deltastn.page import PAGE, Picture, write_page
from ray_deltastn.tune.config import option_of
from ray_deltastn.tune.experiment import read_results
from ray_deltastn.tune.guards import RESULTS_FILE, SPACE_FILE


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        config: what was asked for.
        per_seed: one row per method and seed, see `outcomes`.
        summary: one row per method, see `summary`.
        differences: every method against `random`, paired by seed.
    """

    config: CompareConfig
    per_seed: pd.DataFrame
    summary: pd.DataFrame
    differences: list[Difference]


def write_comparison(out: Path) -> Comparison:
    """Write the tables, the pictures and the page of a comparison that has ended.

    Raises:
        FileNotFoundError: if the folder holds none.
    """
    for name in (COMPARISON_FILE, RESULTS_FILE, SPACE_FILE):
        if not (out / name).exists():
            raise FileNotFoundError(f"`{out}` must hold a comparison that has ended, got no {name}")
    config = CompareConfig.model_validate_json((out / COMPARISON_FILE).read_text())
    results = read_results(out / RESULTS_FILE)
    per_seed, summary = write_tables(results, out)
    found = Comparison(config, per_seed, summary, differences(per_seed))
    space = json.loads((out / SPACE_FILE).read_text())
    pictures.draw(results, space, [option_of(name) for name in config.search], out)
    _write_page(found, out)
    return found


def _write_page(found: Comparison, out: Path) -> None:
    seeds = int(found.summary["seeds"].max())
    header, rows = cells(found.summary)
    seed_header, seed_rows = seed_cells(found.per_seed)
    drawn = [
        (
            "Best validation loss",
            "Over training epochs and over seconds inside the trials, those of all trials together; "
            "the line is the mean over seeds, the band holds all of them.",
            pictures.LOSS,
        ),
        (
            "Hyperparameters",
            "Of the trial that each method and seed chose, over its run; thin lines are constant values.",
            pictures.SCHEDULES,
        ),
        (
            "Validation and test",
            "Small: every trial at its best; large: the chosen ones. Above the line the test loss is higher than the "
            "validation loss that was searched; the farther, the more the search has fitted the validation set.",
            pictures.SCATTER,
        ),
        ("Outer search", "Outer options of every trial and the loss it came to; darker is better.", pictures.OUTER),
    ]
    write_page(
        "compare.html",
        out / PAGE,
        title=out.name,
        task=found.config.task,
        methods=len(found.summary),
        budget=found.config.budget,
        seeds=seeds,
        header=header,
        rows=rows,
        statement=statement(found),
        differences=difference_cells(found.differences) if found.differences else None,
        pictures=[
            Picture(heading, text, out / name, wide=name != pictures.SCATTER)
            for heading, text, name in drawn
            if (out / name).exists()
        ],
        seed_header=seed_header,
        seed_rows=seed_rows,
        config=found.config.model_dump_json(indent=2, exclude_unset=True),
    )


def statement(found: Comparison) -> str:
    """What the differences mean, in a sentence or two."""
    seeds = int(found.summary["seeds"].max())
    if seeds < 2 or not found.differences:
        return "One seed says nothing about noise: these numbers are one run each, and no method is called better."
    return (
        f"Differences are taken seed by seed against {found.differences[0].reference}, with the 95 % interval of "
        f"Student's t for {seeds} seeds. Each stands on its own: of twenty such statements one is wrong by chance. "
        "A method whose interval holds zero is not called better or worse."
    )
