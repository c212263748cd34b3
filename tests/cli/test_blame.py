"""Errors of a command say where in the user's own code they were raised."""

import pytest

pytest.importorskip("ray")
from ray_deltastn.cli import main

TASK = """
import ray_deltastn as rd


def build(config):
    {line}
"""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('return "a" + 1', 'can only concatenate str (not "int") to str'),
        ('return int("a")', "invalid literal for int() with base 10: 'a'"),
        ("return rd.Task(1, 2, 3, 4)", "missing 1 required positional argument: 'valid'"),
        ("return rd.HyperSpace(rate=rd.Bounded(2.0))", "for 'rate'"),
    ],
)
def test_an_error_in_a_task_has_its_line(line, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = f"task_{tmp_path.name}"  # a name of its own, because a module is imported once in a process
    (tmp_path / f"{name}.py").write_text(TASK.format(line=line))
    (tmp_path / "file.yaml").write_text(f"task: {name}:build\n")
    assert main(["run", "file.yaml"]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.endswith(f"{name}.py:6)\n")


def test_an_error_outside_of_the_users_code_has_no_line(tmp_path, capsys):
    assert main(["run", str(tmp_path / "nowhere.yaml")]) == 1
    assert capsys.readouterr().err.endswith("No such file or directory\n")
