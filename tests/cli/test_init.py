"""`ray-deltastn init` writes a task that runs as it is, and overwrites nothing."""

import json
import sys

import pytest

from ray_deltastn.cli import main
from ray_deltastn.tune.config import ExperimentConfig
from tests.tune.loose import installed_command


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "begun_here", raising=False)
    yield tmp_path
    sys.modules.pop("begun_here", None)


def test_the_files_name_each_other_and_are_read(home):
    assert main(["init", "begun_here.py"]) == 0
    assert sorted(path.name for path in home.iterdir()) == ["begun_here.py", "begun_here.yaml"]
    config = ExperimentConfig.read("begun_here.yaml")
    assert (config.task, config.control) == ("begun_here:build", True)
    assert "my_task" not in (home / "begun_here.py").read_text() + (home / "begun_here.yaml").read_text()
    compile((home / "begun_here.py").read_text(), "begun_here.py", "exec")


@pytest.mark.parametrize("there", ["begun_here.py", "begun_here.yaml"])
def test_nothing_is_overwritten(there, home, capsys):
    (home / there).write_text("mine")
    assert main(["init", "begun_here.py"]) == 1
    assert f"`{there}` must not exist" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in home.iterdir()] == [(there, "mine")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("begun-here.py", "can be imported"),
        ("begun_here", "can be imported"),
        ("3d.py", "can be imported"),
        ("random.py", "name of another module"),
        ("torch.py", "name of another module"),
        ("no_such_folder/begun_here.py", "`no_such_folder` must be a folder"),
    ],
)
def test_a_name_that_would_not_run_is_refused(name, said, home, capsys):
    assert main(["init", name]) == 1
    assert said in capsys.readouterr().err
    assert not list(home.iterdir())


@pytest.mark.ray
@pytest.mark.slow
def test_the_files_run_as_they_are_and_tell_what_tuning_has_gained(home):
    def done(*arguments):
        ended = installed_command(*arguments, cwd=home, COLUMNS="80")
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    done("init", "begun_here.py")
    told = done("run", "begun_here.yaml", "train.epochs=3", "num_samples=2", "--out", "out")
    assert "control without tuning" in " ".join(told.split())
    control = json.loads((home / "out" / "control" / "config.json").read_text())
    assert control["train"]["method"] == "fixed"
    assert "control without tuning" in (home / "out" / "report.html").read_text()
    table = done("report", "out", "out/control")
    assert (home / "out+control.png").exists()
    assert [line.split()[0] for line in table.splitlines() if line.startswith((" out ", " control "))] == [
        "out",
        "control",
    ]
