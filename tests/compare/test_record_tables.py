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


#: Mean best losses after so many epochs of all trials together, that the text rests on.
QUOTED = [
    ("fashion_10k", {"fixed": (12, "0.385"), "hybrid": (48, "0.353")}),
    ("fashion_10k", {"fixed": (24, "0.355"), "stn": (24, "0.349"), "delta-stn": (24, "0.359")}),
    ("digits", {"fixed": (117, "0.070"), "stn": (117, "0.051"), "delta-stn": (117, "0.068")}),
]


@pytest.mark.parametrize(("record", "quoted"), QUOTED)
def test_losses_in_the_text_are_those_of_the_curves(record, quoted):
    found = json.loads((ROOT / "benchmarks" / "records" / "compare" / record / "record.json").read_text())
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for method, (epochs, said) in quoted.items():
        curves = [row["curve"] for row in found["rows"] if row["method"] == method]
        best = [min(v for e, v in zip(c["epochs"], c["best_valid_loss"], strict=True) if e <= epochs) for c in curves]
        # Curves are thinned: between two points the loss may have fallen a little further.
        assert sum(best) / len(best) == pytest.approx(float(said), abs=6e-4), method
        assert said in text


@pytest.mark.parametrize("record", ["digits", "fashion_10k"])
def test_differences_from_the_control_in_the_text_are_those_of_the_record(record):
    found = json.loads((ROOT / "benchmarks" / "records" / "compare" / record / "record.json").read_text())
    text = (ROOT / "benchmarks" / "README.md").read_text()
    outcomes = ("best_valid_loss",) if record == "digits" else ("best_valid_loss", "test_loss")
    apart = [d for d in found["differences"] if d["reference"] == "fixed" and d["outcome"] in outcomes]
    assert len(apart) == 3 * len(outcomes)
    for one in apart:
        assert f"{one['mean']:.3f} ± {one['half_width']:.3f}".replace("-", "−") in text, one
    assert all(one["verdict"] in ("within the noise", "the same runs") for one in found["differences"])
