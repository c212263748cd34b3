"""What is said below the final table."""

import json

import pandas as pd
import pytest

from ray_deltastn.reports.experiment import Results


@pytest.fixture
def folder(tmp_path):
    """Two trials of two reports each; the first one's last column is left to the test."""
    (tmp_path / "config.json").write_text(json.dumps({"search": {}, "tune": {"metric": "valid_loss", "mode": "min"}}))
    (tmp_path / "space.json").write_text("{}")
    return tmp_path


def notes(folder, damaged):
    rows = [
        {
            "trial_id": trial,
            "training_iteration": iteration,
            "valid_loss": 0.5,
            "diverged": False,
            "warning/short_run": 0.0,
            "warning/saturated": 0.0,
        }
        for trial in ("a", "b")
        for iteration in (1, 2)
    ]
    table = pd.DataFrame(rows)
    if damaged is not None:
        table["warning/damaged_checkpoints"] = damaged
    table.to_csv(folder / "results.csv", index=False)
    return Results(folder).notes()


@pytest.mark.parametrize("damaged", [[0, 2, 0, 0], [0, 0, 1, 0]])
def test_trials_that_fell_back_are_counted_whenever_they_did(damaged, folder):
    assert notes(folder, damaged) == ["1 of 2 trials found a checkpoint damaged and went on from an earlier one."]


@pytest.mark.parametrize("damaged", [[0, 0, 0, 0], None], ids=["none", "results of an older version"])
def test_nothing_is_said_where_none_did(damaged, folder):
    assert notes(folder, damaged) == []
