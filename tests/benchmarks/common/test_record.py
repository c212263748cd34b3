"""Records: rounding, the command, redrawing, and writing in one piece."""

import argparse
import itertools
import json
import math
import statistics

import pytest

from benchmarks.common import record
from benchmarks.common.arguments import number, several, whole


def test_rounding_keeps_six_digits_and_replaces_nan_at_any_depth():
    assert record.rounded([1.23456789, math.nan, 3]) == [1.23457, None, 3]
    assert record.rounded({"a": {"b": [math.inf, 0.1 + 0.2]}, "c": "d", "e": True}) == {
        "a": {"b": [None, 0.3]},
        "c": "d",
        "e": True,
    }
    assert record.rounded((1234567.8, -math.inf), 4) == [1235000.0, None]


def test_figures_count_a_diverged_run_as_infinite():
    values = [1.0, 2.0, 6.0]
    assert record.figures(values) == {"mean": 3.0, "std": record.rounded(statistics.stdev(values)), "median": 2.0}
    assert record.figures([1.0, 2.0, None]) == {"mean": None, "std": None, "median": 2.0}
    assert record.figures([1.0]) == {"mean": 1.0, "std": None, "median": 1.0}
    assert record.figures([]) == {"mean": None, "std": None, "median": None}


@pytest.mark.parametrize("last", [0, 1, 7, 98, 99, 100, 3000])
def test_even_points_include_both_ends_and_steps_differ_by_at_most_one(last):
    found = record.evenly(last, 100)
    assert (found[0], found[-1], len(found)) == (0, last, min(100, last + 1))
    steps = {b - a for a, b in itertools.pairwise(found)}
    assert not steps or max(steps) - min(steps) <= 1


def test_errors_leave_out_an_optimum_at_the_edge():
    rows = [
        {"lambda_final": 1.5, "lambda_optimal": 1.0, "optimum_at_edge": False},
        {"lambda_final": 1.0, "lambda_optimal": 2.5, "optimum_at_edge": False},
        {"lambda_final": 3.0, "lambda_optimal": -16.0, "optimum_at_edge": True},
    ]
    found = record.off(rows)
    assert (found["optimum_at_edge"], found["lambda_error"]["mean"]) == (1, -0.5)


def kind(**changes):
    options = {
        "module": "benchmarks.some",
        "keys": ("name", "path"),
        "curves": ("path",),
        "points": 3,
        "versions": ("torch",),
        "summary": lambda rows: [{"n": len(rows)}],
        "lines": lambda rows: [f"{len(rows)} rows"],
        "plot": lambda rows, path: path.write_text("drawn"),
    }
    return record.Kind(**{**options, **changes})


def test_command_has_the_given_arguments():
    assert kind().command(["--data", "a b.npz", "--json", "x"]) == (
        "python -m benchmarks.some --data 'a b.npz' --json x"
    )
    assert kind().command(["--rows", "old.json", "--json=new.json", "--plot", "new.png"]) is None
    assert kind().command(["--rows=old.json", "--seeds", "3", "--json", "x"]) == (
        "python -m benchmarks.some --seeds 3 --json x"
    )


ROWS = [
    {"name": "a", "torch": "2", "path": [0.0, 1.0, 2.0, 3.0, 4.123456789]},
    {"name": "b", "torch": "2", "path": [5.0]},
]


def redrawn(folder, found, command):
    (folder / "old.json").write_text(json.dumps(found))
    options = argparse.Namespace(rows=folder / "old.json", json=folder / "new.json", plot=folder / "new.png")
    kind().redraw(argparse.ArgumentParser(), options, command)
    return json.loads((folder / "new.json").read_text())


def test_redrawing_upgrades_a_plain_list_and_keeps_the_command_of_a_record(tmp_path, capsys):
    upgraded = redrawn(tmp_path, ROWS, None)
    thinned = [{**ROWS[0], "path": [0.0, 2.0, 4.12346]}, ROWS[1]]
    assert upgraded == {"command": None, "summary": [{"n": 2}], "versions": {"torch": "2"}, "rows": thinned}
    assert capsys.readouterr().out == "2 rows\n"
    assert (tmp_path / "new.png").read_text() == "drawn"
    assert redrawn(tmp_path, ROWS, "given")["command"] == "given"
    again = redrawn(tmp_path, {"command": "first", "summary": [], "versions": {}, "missing": 2, "rows": ROWS}, "given")
    assert (again["command"], again["missing"], again["rows"]) == ("first", 2, thinned)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not JSON", "must contain a record in JSON, got"),
        ("[]", "must contain a list of rows, or a record with `rows`, got neither"),
        ('{"rows": 3}', "must contain a list of rows, or a record with `rows`, got neither"),
        ('[{"name": "a"}]', "must have the keys of this benchmark, got rows without path"),
    ],
)
def test_a_file_without_a_record_is_refused(text, message, tmp_path):
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        record.read(tmp_path / "old.json", ("name", "path"))


def test_a_record_has_one_row_per_line_and_is_written_in_one_piece(tmp_path):
    path = tmp_path / "new" / "rows.json"
    kind().save(path, "some", ROWS, missing=1)
    lines = path.read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"name"')] == ROWS
    assert json.loads(path.read_text())["missing"] == 1
    with pytest.raises(ValueError, match="JSON compliant"):
        record.write(path, [{"a": math.nan}])
    assert json.loads(path.read_text())["rows"] == ROWS


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", ""])
def test_whole_numbers(text):
    with pytest.raises(argparse.ArgumentTypeError, match=rf"must be a whole number >= 1, got '{text}'"):
        whole()(text)
    assert whole()("7") == 7
    assert whole(0)("0") == 0


@pytest.mark.parametrize("text", ["-0.1", "1", "nan", "inf", "x"])
def test_numbers_within_bounds(text):
    with pytest.raises(argparse.ArgumentTypeError, match=rf"must be a finite number >= 0 and < 1, got '{text}'"):
        number(least=0, below=1)(text)
    assert several(number(above=0, most=2))("0.5,2") == [0.5, 2.0]
