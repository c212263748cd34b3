"""Notes below the final table of an experiment."""

import json

import pandas as pd
import pytest

from ray_deltastn.reports.experiment import Results


@pytest.fixture
def folder(tmp_path):
    """Folder of an experiment without results; `notes` adds two trials with two reports each."""
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
def test_trials_that_skipped_a_damaged_checkpoint_are_counted(damaged, folder):
    assert notes(folder, damaged) == ["1 of 2 trials found a damaged checkpoint and continued from an earlier one."]


@pytest.mark.parametrize("damaged", [[0, 0, 0, 0], None], ids=["none", "results of an older version"])
def test_there_is_no_note_if_no_checkpoint_was_damaged(damaged, folder):
    assert notes(folder, damaged) == []
