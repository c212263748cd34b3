"""The tables of the README and the benchmarks page hold what the committed records of comparisons say."""

import json
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: The record of each page.
TABLES = [("README.md", "digits"), ("benchmarks/README.md", "fashion_10k")]
COLUMNS = {"best_valid_loss": 3, "test_loss": 3, "test_accuracy": 3, "valid_loss_at_random": 3, "device_seconds": 0}


def rows_of(page, record):
    """Cells by method, of the table below the first mention of the record."""
    text = (ROOT / page).read_text()
    table = text[text.index(f"records/compare/{record}/record.json") :]
    lines = re.findall(r"^\| ([a-z-]+)[^|]*\|(.+)\|$", table.split("\n\n##")[0], re.MULTILINE)
    return {method: [cell.strip() for cell in cells.split("|")] for method, cells in lines if method != "method"}


@pytest.mark.parametrize(("page", "record"), TABLES, ids=[record for _, record in TABLES])
def test_a_page_says_what_its_record_does(page, record):
    found = json.loads((ROOT / "benchmarks" / "records" / "compare" / record / "record.json").read_text())
    rows = rows_of(page, record)
    assert set(rows) == {row["method"] for row in found["summary"]}
    for row in found["summary"]:
        for cell, (name, digits) in zip(rows[row["method"]], COLUMNS.items(), strict=True):
            mean, deviation = row[f"{name}_mean"], row[f"{name}_std"]
            said = "–" if mean is None or math.isnan(mean) else f"{mean:.{digits}f}"
            if digits and said != "–":
                said += f" ± {deviation:.{digits}f}" + (
                    "" if row[f"{name}_n"] == found["n"] else f" ({row[f'{name}_n']})"
                )
            assert cell == said, (row["method"], name)
