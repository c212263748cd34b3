"""Text of users is shown as it is, and an error of the output ends no run."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from ray_deltastn.cli import main
from ray_deltastn.tune.console import PlainConsole, plain
from ray_deltastn.tune.folder.report_log import ReportLog
from ray_deltastn.tune.output import lasting_output, one_line
from ray_deltastn.tune.progress import Progress
from tests.tune.commands import ENVIRONMENT, ROOT
from tests.tune.logged import report

TEXTS = ("[/INST]", "[relu]", "[bold]", "[/s]", ":smile:", "[link=x]", "\\[a]", "a\\", "$x$")


def shown(progress, trial_id, value):
    progress.on_trial_result(
        0, [], SimpleNamespace(trial_id=trial_id, config={"[/key]": value}), report("a", 1, 0.5, 0.1)
    )


@pytest.mark.parametrize("kind", [Console, PlainConsole])
@pytest.mark.parametrize("terminal", [True, False])
def test_values_and_names_of_users_are_shown_as_they_are(kind, terminal):
    out = io.StringIO()
    progress = Progress(["[/key]"], len(TEXTS), kind(file=out, force_terminal=terminal, width=200), every=0.0)
    progress.setup()
    for number, text in enumerate(TEXTS):
        shown(progress, str(number), text)
    progress.close()
    assert not progress.broken
    for text in (*TEXTS, "[/key]"):
        assert text in out.getvalue(), text


@pytest.mark.parametrize("kind", [Console, PlainConsole])
@pytest.mark.parametrize("text", TEXTS)
def test_a_cell_is_the_same_on_every_console(kind, text):
    out = io.StringIO()
    kind(file=out, width=80).print(plain(text))
    assert out.getvalue() == f"{text}\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a\nb", "a\\nb"), ("\x1b[31m", "\\x1b[31m"), ("λ→σ", "λ→σ"), (3, "3"), ("\udc80", "\\udc80")],
)
def test_a_value_takes_one_line(value, expected):
    assert one_line(value) == expected


def test_a_long_value_is_cut_off():
    assert one_line("x" * 100, 10) == "x" * 9 + "…"


class Broken(io.StringIO):
    """A stream whose reader is gone, or that cannot encode a text."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("kind", [Console, PlainConsole])
@pytest.mark.parametrize(
    "error",
    [BrokenPipeError("gone"), OSError("no device"), UnicodeEncodeError("ascii", "→", 0, 1, "no such character")],
    ids=["pipe", "device", "encoding"],
)
def test_an_output_that_fails_ends_the_display_and_not_the_run(kind, error, terminal, monkeypatch):
    monkeypatch.setattr(os, "dup2", lambda *a: None)  # Rich closes standard output
    progress = Progress(["[/key]"], 2, kind(file=Broken(error), force_terminal=terminal), every=0.0)
    progress.setup()
    for number in range(3):
        shown(progress, str(number), "a")
    progress.on_trial_error(1, [], SimpleNamespace(trial_id="b", config={}))
    progress.say("a line")
    progress.on_experiment_end([])
    progress.close()
    assert progress.broken or progress.console.quiet


class Gone(io.TextIOWrapper):
    """Standard output whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError("gone")


def test_a_command_whose_reader_is_gone_ends_well(stopped, monkeypatch):
    gone = Gone(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", gone)
    assert main(["status", str(stopped)]) == 0
    assert sys.stdout is gone


def test_inside_a_command_any_print_outlives_its_reader(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Gone(io.BytesIO()))
    with lasting_output():
        print("Tune prints too", flush=True)
        sys.stdout.writelines(["a", "b"])


def test_a_row_that_cannot_be_shown_ends_the_display_and_not_the_run():
    progress = Progress(["lr"], 2, Console(file=io.StringIO()), every=0.0)
    progress.on_trial_result(0, [], SimpleNamespace(trial_id="a", config={"lr": 0.1}), {"valid_loss": "no number"})
    assert progress.broken


@pytest.fixture
def stopped(tmp_path):
    """A stopped experiment whose searched texts look like markup."""
    config = {"task": "t", "search": {"options.[/a]": "…"}, "tune": {"num_samples": len(TEXTS)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    log = ReportLog(tmp_path)
    for number, text in enumerate(TEXTS):
        result = report(str(number), 1, 0.5, 0.25)
        log.on_trial_result(0, [], SimpleNamespace(trial_id=str(number), config={"[/a]": text}), result)
    return tmp_path


def test_status_shows_texts_as_they_are(stopped, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["status", str(stopped)]) == 0
    out = capsys.readouterr().out
    for text in (*TEXTS, "[/a]", "stopped; continue with --resume"):
        assert text in out, text


ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    "c-locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


#: Several commands in one process, because PyTorch and Ray take seconds to import.
SEVERAL = """
import json, sys
from ray_deltastn.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        status = main([sys.argv[2] if one == "FILE" else one for one in arguments])
    except SystemExit as end:
        status = end.code or 0
    print("ended with", status, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_output_that_is_not_utf_8_gets_replacements(stopped, encoding, tmp_path):
    bad = tmp_path / "λ.yaml"
    bad.write_text("task: λ", encoding="utf-8")
    commands = [["--help"], ["status", str(stopped)], ["run", "FILE", "--out", str(tmp_path / "out")]]
    commands.append(["schema", "experiment"])
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(commands), str(bad)],
        cwd=ROOT,
        env={**ENVIRONMENT, **ENCODINGS[encoding]},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    usage, status, run, schema = done.stdout.split(b"ended with ")[:4]
    assert b"-STN inside Ray Tune" in usage
    assert b"[/INST]" in status
    assert b"`task` must be one of" in done.stderr
    assert run.startswith(b"0")
    assert schema.startswith(b"1")
    assert "λ" in json.dumps(json.loads(schema.partition(b"\n")[2]), ensure_ascii=False)
    assert done.returncode == 0
