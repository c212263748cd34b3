"""The command for a GPU: its pieces on a CPU, its oracle, its watch over processes, and what it needs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.common import pages
from benchmarks.common.tables import gpu as tables
from benchmarks.gpu import correctness, oracle
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.command import Command, summary
from benchmarks.gpu.gradients import CPU, MADE, Problem
from benchmarks.gpu.items import Item, Place, largest_difference
from benchmarks.gpu.kept import read
from benchmarks.gpu.worker import in_order, run

ROOT = Path(__file__).parents[2]
#: Libraries that a machine with a GPU need not have.
NOT_NEEDED = ("ray", "skopt", "pandas", "sklearn", "scipy", "matplotlib", "yaml", "pyarrow", "rich", "jinja2")


def place(seconds=60.0):
    return Place(CPU, tiny=True, until=time.time() + seconds)


@pytest.mark.parametrize("name", MADE)
def test_float64_gradients_are_those_of_the_dense_oracle(name):
    problem = Problem(name, "delta-stn", CPU, torch.float64)
    expected = oracle.gradients(problem.tuner, problem.x, problem.y, problem.z)
    assert largest_difference(problem.gradients(), expected) < 1e-12
    assert {"lambda", "sigma", "U"} < expected.keys()


@pytest.mark.slow
@pytest.mark.parametrize("item", correctness.items(tiny=True), ids=lambda item: item.name)
def test_checks_pass_on_a_cpu(item):
    row, _ = run("correctness", item, place())
    assert row["passed"], row["error"]
    assert row["figures"]


def test_a_broken_limit_and_an_error_fail_a_piece():
    def bad(place, findings):
        findings.at_most("error", 2.0, 1.0)
        findings.at_most("nothing", float("nan"), 1.0)
        findings.must("captured", False)

    def worse(place, findings):
        findings.note(seen=1)
        raise ValueError("no\nmore")

    row, _ = run("cost", Item("bad", bad), place())
    assert not row["passed"]
    assert row["error"] == (
        "`error <= 1` must hold, got 2; `nothing <= 1` must hold, got nan; `captured` must hold, got no"
    )
    row, trace = run("cost", Item("worse", worse), place())
    assert not row["passed"]
    assert (row["error"], row["figures"]) == ("ValueError: no", {"seen": 1})
    assert "in worse" in trace


def test_missing_pieces_come_before_failed_ones_and_passed_ones_do_not_come():
    items = [Item(name, lambda place, findings: None) for name in "abcd"]
    rows = {"a": {"passed": False, "run": 1}, "b": {"passed": True, "run": 1}, "c": {"passed": False, "run": 2}}
    assert [item.name for item in in_order(items, rows, 2)] == ["d", "a"]
    assert [item.name for item in in_order(items, rows, 3)] == ["d", "a", "c"]


class Told:
    """Stands in for a process that tells events."""

    def __init__(self, *events, status=0):
        self.told, self.status = events, status

    def events(self):
        for event in self.told:
            time.sleep(0.01)
            yield event


ABOUT = {"about": {"hardware": "a GPU", "torch": "2", "ray_deltastn": "0"}, "names": ["one", "two", "three"]}


def row(name, passed=True):
    plain = {"seconds": 1.0, "figures": {}, "limits": {}, "error": "", "run": 1}
    return {"part": "cost", "name": name, "passed": passed, **plain}


@pytest.fixture
def started(tmp_path):
    """A command, and a function that lets it follow a process."""
    made = Command(tmp_path / "gpu.json", read(tmp_path / "gpu.json"), "cpu", "", ["--out", "x"])

    def follow(process, stop=60.0):
        return made._follow("cost", process, time.time() + stop, time.time() + 60)

    return made, follow


def test_rows_are_kept_when_the_process_ends_hangs_or_crashes(started, monkeypatch):
    made, follow = started
    assert follow(Told(ABOUT, {"begin": "one", "limit": 9}, {"row": row("one")})) == (None, "")
    assert follow(Told(ABOUT, {"begin": "two", "limit": 0.0}, None)) == ("two", "")
    assert follow(Told(ABOUT, {"begin": "three", "limit": 9}, status=-11)) == ("three", "")
    found = read(made.path)
    assert [(r["name"], r["passed"]) for r in found["rows"]] == [("one", True), ("two", False), ("three", False)]
    assert found["hardware"] == "a GPU"
    assert found["rows"][1]["error"] == "it must end within 0 seconds, got no end"
    assert found["rows"][2]["error"] == "the process must continue, got exit status -11"
    assert "cost: 1 ok, 2 failed, 0 not run (two, three)" in summary(made.path, found, made.names)


def test_a_piece_at_the_end_of_the_time_is_stopped_and_not_counted(started):
    made, follow = started
    assert follow(Told(ABOUT, {"begin": "one", "limit": 9}, None, None), stop=0.0) == (None, "")
    assert "rows" not in made.record or not made.record["rows"]


def test_a_device_that_does_not_answer_ends_the_process_but_not_the_part(started):
    _made, follow = started
    assert follow(Told(ABOUT, {"row": row("one", passed=False)}, {"sick": "one"}, status=3)) == ("one", "")


def test_a_process_that_ends_between_two_pieces_does_not_end_the_command(started, capsys):
    made, follow = started
    assert follow(Told(status=1)) == (None, "")
    assert made.ended == ["cost"]
    assert "cost: the process must end with status 0, got 1" in capsys.readouterr().out


def test_a_record_is_of_one_machine(started):
    _made, follow = started
    follow(Told(ABOUT))
    other = {"about": {**ABOUT["about"], "hardware": "another"}, "names": []}
    _, problem = follow(Told(other))
    assert problem == (
        "all rows of a record must have the same hardware, got 'a GPU' in `--out` and 'another' here; use another "
        "folder"
    )


def test_what_cannot_run_is_refused(tmp_path, refusal):
    (tmp_path / "gpu.json").write_text("[]")
    assert "must be a record of this command, got another file" in refusal(main, "--out", str(tmp_path))
    assert "`--parts` must be names from correctness" in refusal(main, "--out", str(tmp_path), "--parts", "speed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.slow
def test_a_machine_without_a_gpu_is_told(tmp_path, refusal):
    assert "`--device cuda` needs a GPU" in refusal(main, "--out", str(tmp_path))


@pytest.mark.slow
def test_the_command_continues_and_needs_few_libraries(tmp_path):
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in NOT_NEEDED)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{blocked}")
    paths = os.pathsep.join(map(str, (tmp_path, ROOT)))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--minutes", "2", "--out", str(tmp_path / "out")]
    for parts in ("cost", "correctness,cost", "quality"):
        only = [] if parts == "quality" else ["--only", "mlp, "]
        given = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": False}
        done = subprocess.run([*line, "--parts", parts, *only], **given)
        assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert all(r["passed"] for r in record["rows"])
    assert {r["part"]: r["run"] for r in record["rows"]} == {"cost": 1, "correctness": 2, "quality": 3}


def quality(name, valid, seconds):
    figures = {"valid_loss": valid, "test_loss": valid, "test_accuracy": 0.5, "device_seconds": seconds, "images": "x"}
    return {"part": "quality", "name": name, "passed": True, "figures": figures, "error": "", "limits": {}}


def test_contenders_have_as_many_runs_as_fit_in_equal_device_seconds():
    drawn = [quality(f"random {i}", 1.0 - 0.1 * i, 2.0) for i in range(4)]
    tuned = [quality(f"delta-stn, seed {s}", 0.5 + 0.1 * s, 4.5) for s in range(2)]
    found = tables.contenders([quality("plain", 2.0, 1.0), *drawn, *tuned])
    assert [(len(rows), tables.best_of(rows)["valid_loss"]) for _, rows in found] == [
        (1, 2.0),
        (1, 0.5),
        (2, pytest.approx(0.9)),  # 4 of 4.5 seconds
        (4, pytest.approx(0.7)),
        (1, 0.5),  # two runs would take 9 of 8 seconds
    ]


def test_a_check_that_is_no_number_is_in_the_table():
    figures = {"figures": {"difference": None}, "limits": {"difference": 1e-9}}
    failed = {"part": "correctness", "name": "one", "passed": False, "error": "got nan", **figures}
    found = tables.checks({"hardware": "a GPU", "torch": "2", "rows": [failed]})
    assert "| one | failed | got nan |" in found


def test_a_page_says_that_there_is_no_record_until_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "RECORDS", tmp_path)
    table = tables.TABLES["gpu-quality"]
    assert table.text(pages.DOCS / "page.md") == tables.NO_RECORD
    (tmp_path / "gpu.json").write_text(json.dumps({"rows": [quality("plain", 2.0, 1.0)]}))
    assert "| plain | 1 | 1.0 | 2.0000 | 2.0000 | 50.00 % |" in table.text(pages.DOCS / "page.md")
