"""The state and progress of an experiment are read from its files."""

import json
import math
from types import SimpleNamespace

import pytest
from filelock import FileLock
from rich.console import Console

from ray_deltastn.cli import main
from ray_deltastn.tune.folder.log import last_of_each, read_log
from ray_deltastn.tune.folder.report_log import ReportLog
from ray_deltastn.tune.status import state_of, status
from tests.tune.logged import report


@pytest.fixture
def out(tmp_path):
    """An experiment of four trials: one is done, one has diverged, one has failed, and one is unfinished."""
    (tmp_path / "config.json").write_text(json.dumps({"search": {"lr": "…"}, "tune": {"num_samples": 5}}))
    log = ReportLog(tmp_path)
    for result, lr in (
        (report("a", 1, 0.9, 0.05), 0.1),
        (report("4371810e6", 1, 0.9, 0.05), 0.2),
        (report("a", 2, 0.7, 0.25, done=True), 0.1),
        (report("4371810e6", 2, math.inf, 0.3, done=True, diverged=True), 0.2),
        (report("c", 1, 0.8, 0.05), 0.3),
        (report("d", 1, 0.8, 0.05), 0.4),
        (report("d", 2, 0.75, 0.1), 0.4),
    ):
        log.on_trial_result(0, [], SimpleNamespace(trial_id=result["trial_id"], config={"lr": lr}), result)
    (tmp_path / "trials" / "c").mkdir(parents=True)
    (tmp_path / "trials" / "c" / "error.txt").write_text("a fault")
    with (tmp_path / "reports.jsonl").open("a") as file:
        file.write('{"trial_id": "d", "resu')  # the driver was killed while it wrote this line
    return tmp_path


def cells(out):
    console = Console(width=200)
    state, table = status(out, console)
    rows = zip(*(map(str, column.cells) for column in table.columns), strict=True)
    header = [str(column.header) for column in table.columns]
    return state, table.title, {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_each_trial_shows_its_state_and_its_first_and_last_hyperparameters(out):
    state, title, rows = cells(out)
    assert (state, title) == ("stopped", "2 of 5 trials ended")
    by_rate = {row["lr"]: row for row in rows.values()}
    assert {lr: row["state"] for lr, row in by_rate.items()} == {
        "0.1": "done",
        "0.2": "diverged",
        "0.3": "waiting",
        "0.4": "waiting",
    }
    assert by_rate["0.1"]["dropout"] == "0.05→0.25"
    assert (by_rate["0.4"]["epoch"], by_rate["0.4"]["best"]) == ("2", "0.7500")


def test_a_locked_folder_is_running_and_a_folder_with_results_has_ended(out):
    with FileLock(out / ".lock"):
        state, _, rows = cells(out)
        assert state == "running"
        assert "running" in {row["state"] for row in rows.values()}
    assert state_of(out) == "stopped"
    (out / "results.csv").touch()
    assert state_of(out) == "ended"
    _, _, rows = cells(out)
    assert {row["lr"]: row["state"] for row in rows.values()}["0.3"] == "failed"


def test_a_trial_that_skipped_a_damaged_checkpoint_fell_back(out):
    trial = SimpleNamespace(trial_id="d", config={"lr": 0.4})
    ReportLog(out).on_trial_result(0, [], trial, report("d", 2, 0.8, 0.1, **{"warning/damaged_checkpoints": 1.0}))
    _, title, rows = cells(out)
    assert {row["lr"]: row["state"] for row in rows.values()}["0.4"] == "waiting, fell back"
    assert title == "2 of 5 trials ended"


def test_the_command_says_how_to_continue(out, capsys):
    assert main(["status", str(out)]) == 0
    assert "stopped; continue with --resume" in capsys.readouterr().out
    (out / "reports.jsonl").unlink()
    assert main(["status", str(out)]) == 0
    assert "0 of 5 trials ended" in capsys.readouterr().out
    assert main(["status", str(out / "nowhere")]) == 1
    assert "must hold an experiment, got no config.json" in capsys.readouterr().err


def test_the_folder_above_experiments_names_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "config.json").write_text("{}")
    for command in ("status", "report"):
        assert main([command, "results"]) == 1
        assert "; it holds `results/a`, `results/b`" in capsys.readouterr().err


def test_an_incomplete_line_does_not_damage_other_lines(out):
    trial = SimpleNamespace(trial_id="d", config={"lr": 0.4})
    ReportLog(out).on_trial_result(0, [], trial, report("d", 3, 0.5, 0.2))  # the resumed driver appends
    log = read_log(out)
    assert [r.iteration for r in log["d"]] == [1, 2, 3]
    assert [r.config for r in log["d"]] == [{"lr": 0.4}] * 3
    assert log["4371810e6"][-1].result["valid_loss"] == math.inf


def test_repeated_reports_of_a_restored_trial_replace_the_first_ones(out):
    trial = SimpleNamespace(trial_id="e", config={"lr": 0.5})
    for iteration in (1, 2, 3, 2):
        ReportLog(out).on_trial_result(0, [], trial, report("e", iteration, 1.0 / iteration, 0.2))
    assert [r.iteration for r in last_of_each(read_log(out)["e"])] == [1, 2]


def test_a_report_keeps_the_config_with_which_it_was_made(out):
    trial = SimpleNamespace(trial_id="f", config={"lr": 0.9})  # a scheduler has changed it for the next report
    ReportLog(out).on_trial_result(0, [], trial, report("f", 1, 1.0, 0.2, config={"lr": 0.5}))
    assert read_log(out)["f"][0].config == {"lr": 0.5}
