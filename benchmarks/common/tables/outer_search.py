"""Tables of the searchers on functions with a known minimum."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import MISSING, grid, significant
from benchmarks.common.pages import Table
from benchmarks.common.record import cases
from benchmarks.outer_search.functions import FUNCTIONS
from benchmarks.outer_search.summary import summary

Record = Mapping[str, Any]
RECORD = "outer_search.json"


def _value(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.4f}".replace("-", "−")


def best(record: Record) -> str:
    """Median of the best true value of each searcher; the smallest is bold."""
    lines = summary(record["rows"])
    searchers = list(dict.fromkeys(line["searcher"] for line in lines))
    rows = []
    for (function, budget), mine in cases(lines, ("function", "budget")):
        by = {line["searcher"]: line for line in mine}
        least = min(line["best"] for line in mine)
        cells = [_value(by[name]["best"]) if name in by else MISSING for name in searchers]
        bold = [
            f"**{cell}**" if name in by and by[name]["best"] == least else cell
            for name, cell in zip(searchers, cells, strict=True)
        ]
        count = min(line["n"] for line in mine)
        rows.append([f"`{function}`", f"{budget}", f"{count}", _value(FUNCTIONS[function].minimum), *bold])
    rows.sort(key=lambda row: (int(row[1]), list(FUNCTIONS).index(row[0].strip("`"))))
    return grid(["function", "trials", "seeds", "minimum", *(f"`{name}`" for name in searchers)], rows)


def ranks(record: Record) -> str:
    """Mean rank over functions and seeds, wins against random search, and time in the driver, by number of trials."""
    lines = summary(record["rows"])
    rows = []
    for (budget, searcher), mine in cases(lines, ("budget", "searcher")):
        wins = [line["wins"] for line in mine]
        count = sum(line["pairs"] for line in mine)
        won = MISSING if None in wins else f"{sum(wins):g} of {count}"
        rank = statistics.fmean(line["rank"] for line in mine)
        seconds = statistics.median(line["seconds"] for line in mine)
        took = MISSING if searcher == "random" else significant(seconds)
        rows.append([f"{budget}", f"`{searcher}`", f"{rank:.2f}", won, took])
    rows.sort(key=lambda row: (int(row[0]), float(row[2])))
    return grid(["trials", "searcher", "mean rank", "better than `random`", "seconds of a search"], rows, left=2)


def suggestions(record: Record) -> str:
    """Seconds of one suggestion, by number of finished trials."""
    rows = [[f"`{row['searcher']}`", f"{row['points']}", *map(significant, row["seconds"])] for row in record["rows"]]
    return grid(["searcher", "finished trials", "first suggestion", "second suggestion"], rows)


TABLES = {
    "outer-search": Table(best, (RECORD,)),
    "outer-search-ranks": Table(ranks, (RECORD,)),
    "outer-search-seconds": Table(suggestions, ("outer_search_points.json",)),
}
