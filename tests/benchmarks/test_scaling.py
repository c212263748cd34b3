"""Efficiency of real trials, and waiting times of the workers of simulated trials."""

import pandas as pd
import pytest

from benchmarks import scaling


def test_efficiency_uses_the_fastest_repetitions():
    one, two = scaling.efficiencies({1: [12.0, 10.0], 2: [12.5, 20.0]})
    assert (one["seconds"], one["efficiency"], one["every"]) == (10.0, 1.0, [12.0, 10.0])
    assert (two["trials"], two["workers"], two["seconds"], two["efficiency"]) == (2, 2, 12.5, 0.8)


def naps(rows):
    return pd.DataFrame(rows, columns=["pid", "trial_id", "began", "ended"])


def test_workers_wait_between_naps_and_between_trials():
    found = scaling.waiting(
        naps(
            [
                (1, "a", 0.0, 1.0),
                (1, "a", 1.25, 2.25),
                (1, "c", 3.25, 4.25),
                (1, "c", 4.75, 5.75),
                (2, "b", 0.5, 1.5),
                (2, "b", 1.75, 2.75),
            ]
        ),
        trials=3,
        workers=2,
    )
    assert (found["trial_seconds"], found["ideal"], found["seconds"]) == (2.0, 4.0, 5.75)
    assert found["processes"] == 2
    assert found["report_ms"] == pytest.approx(1000 * (0.25 + 0.5 + 0.25) / 3)
    assert found["trial_ms"] == pytest.approx(1000.0)
    assert found["overhead"] == pytest.approx(2.0 / 6.0)


def test_a_worker_with_a_single_trial_waits_for_reports_only():
    row = scaling.waiting(naps([(1, "a", 0.0, 1.0), (1, "a", 1.1, 2.1)]), trials=1, workers=1)
    assert row["overhead"] == pytest.approx(0.05)
    assert row["trial_ms"] != row["trial_ms"]  # NaN, because there is no second trial
    rounded = scaling.rounded({"start": 1.0, **row}, 4)
    lines = scaling.lines({"real": [], "simulated": [rounded]})
    assert lines[-1].split() == ["1", "1", "1", "2.0", "2.1", "1.0", "100.0", "–", "5.00%"]


def test_wrong_arguments_end_with_one_error_line(refusal):
    assert "--trials: must be a whole number >= 1" in refusal(scaling.main, "--trials", "8,none")
    assert "--nap: must be a finite number > 0" in refusal(scaling.main, "--nap", "0")
