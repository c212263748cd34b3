"""The state of an experiment, read from its files."""

import json
import shutil

import pytest
from filelock import FileLock
from rich.console import Console

from ray_deltastn.cli import main
from ray_deltastn.tune.status import state_of, status

REPORTS = "training_iteration,epoch,valid_loss,best_valid_loss,hyperparameters/dropout,diverged,done\n"


@pytest.fixture
def out(tmp_path):
    """An experiment of four trials: one done, one diverged, one failed, one in the middle."""
    (tmp_path / "config.json").write_text(json.dumps({"search": {"lr": "…"}, "tune": {"num_samples": 5}}))
    for name, rows, lr in (
        ("a", "1,1,0.9,0.9,0.05,False,False\n2,2,0.7,0.7,0.25,False,True\n", 0.1),
        ("4371810e6", "1,1,0.9,0.9,0.05,False,False\n2,2,inf,0.9,0.3,True,True\n", 0.2),
        ("c", "1,1,0.8,0.8,0.05,False,False\n", 0.3),
        ("d", "1,1,0.8,0.8,0.05,False,False\n2,2,0.75,0.75,0.1,False,False\n1,1,0.8,0.8,0.05,False,False\n", 0.4),
    ):
        folder = tmp_path / "trials" / name
        folder.mkdir(parents=True)
        (folder / "params.json").write_text(json.dumps({"lr": lr}))
        (folder / "progress.csv").write_text(REPORTS + rows)
    (tmp_path / "trials" / "c" / "error.txt").write_text("a fault")
    (tmp_path / "trials" / "e").mkdir()
    return tmp_path


def cells(out):
    console = Console(width=200)
    state, table = status(out, console)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    header = [column.header for column in table.columns]
    return state, table.title, {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_each_trial_has_its_state_and_its_hyperparameters_way(out):
    state, title, rows = cells(out)
    assert (state, title) == ("stopped", "3 of 5 trials ended")
    by_rate = {row["lr"]: row for row in rows.values()}
    assert {lr: row["state"] for lr, row in by_rate.items()} == {
        "0.1": "done", "0.2": "diverged", "0.3": "failed", "0.4": "waiting",
    }  # fmt: skip
    assert by_rate["0.1"]["dropout"] == "0.05→0.25"
    assert (by_rate["0.4"]["epoch"], by_rate["0.4"]["best"]) == ("2", "0.7500")


def test_a_held_folder_is_running_and_one_with_results_has_ended(out):
    with FileLock(out / ".lock"):
        state, _, rows = cells(out)
        assert state == "running"
        assert "running" in {row["state"] for row in rows.values()}
    assert state_of(out) == "stopped"
    (out / "results.csv").touch()
    assert state_of(out) == "ended"


def test_the_command_says_how_to_go_on(out, capsys):
    assert main(["status", str(out)]) == 0
    assert "stopped; continue with --resume" in capsys.readouterr().out
    shutil.rmtree(out / "trials")
    assert main(["status", str(out)]) == 0
    assert "0 of 5 trials ended" in capsys.readouterr().out
    assert main(["status", str(out / "nowhere")]) == 1
    assert "must hold an experiment, got no config.json" in capsys.readouterr().err
