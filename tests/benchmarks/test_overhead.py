"""Parts of a trial's time, read from its reports."""

import pandas as pd
import pytest

from benchmarks import overhead


def reports():
    times = {
        "training_iteration": [1, 2, 3, 4],
        "seconds/train": [10.0, 20.0, 30.0, 40.0],
        "seconds/hyper": [1.0, 2.0, 3.0, 4.0],
        "seconds/evaluate": [0.5, 1.0, 1.5, 2.0],
        "seconds/total": [11.5, 23.0, 34.5, 46.0],
        "seconds/checkpoint": [0.0, 0.0, 0.25, 0.25],
        "seconds/between": [0.0, 0.5, 2.0, 2.5],
        "time_total_s": [12.0, 24.0, 36.0, 47.5],
    }
    return pd.DataFrame(times)


def test_parts_sum_to_the_total_and_training_is_not_overhead():
    row = overhead.parts(reports().iloc[::-1])
    own = {"train": 44.0, "evaluate": 2.0, "report": 1.5, "checkpoint": 0.25, "round_trip": 2.25}
    assert {name: row[name] for name in own} == own
    assert row["seconds"] == sum(own.values()) == 50.0
    assert row["own_share"] == pytest.approx(1.75 / 50.0)
    assert row["share"] == pytest.approx(4.0 / 50.0)
    assert (row["reports"], row["seconds_per_report"]) == (4, 12.5)


def test_line_tells_whether_the_limit_holds():
    row = {"epochs_per_report": 1, **overhead.parts(reports()), "own_share": 0.02, "share": 0.021}
    printed = overhead.line(row)
    assert "reports and checkpoints 2.00 %, within 2 %; with round trips 2.10 %, above 2 %" in printed


def test_wrong_arguments_end_with_one_error_line(refusal):
    assert "--minutes: must be a finite number > 0, got '0'" in refusal(overhead.main, "--minutes", "0")
    assert "--epochs-per-report: must be a whole number >= 1" in refusal(overhead.main, "--epochs-per-report", "1,0")
