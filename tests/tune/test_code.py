"""The command finds the task's module beside the YAML file and in the current folder, here and in workers."""

import os
import sys
from pathlib import Path

import pytest

from ray_deltastn.cli import main
from ray_deltastn.tasks.imports import home_of, import_function, importable
from ray_deltastn.tune.cluster import copy_code
from ray_deltastn.tune.folder.results import read_results
from tests.tune.loose import YAML, installed_command, write_task

COMPARISON = "{task: x, trials: 2, train: {epochs: 2}, search: {lr: 'uniform(0.1, 0.2)'}, single: {lr: 0.1}}"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "configs" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(YAML)
    return path


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("place", ["configs", "here"])
def test_workers_import_a_module_beside_the_yaml_file_or_in_the_current_folder(place, config, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    write_task(tmp_path / place)
    done = installed_command("run", config, "--out", "out", cwd=here)
    assert done.returncode == 0, done.stderr
    assert read_results(here / "out" / "results.csv")["epoch"].tolist() == [1, 2]
    done = installed_command("refit", here / "out", cwd=here if place == "here" else tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_missing_module_is_one_line_with_the_folders_that_were_searched(
    command, config, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if command == "compare":
        config.write_text(COMPARISON)
    before = list(sys.path)
    assert main([command, str(config), "--set", "task=missing_module:build", "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "got 'missing_module:build'" in line
    for folder in (config.parent, tmp_path):
        assert str(folder.resolve()) in line
    assert sys.path == before


FAULTS = {
    "other-function": ("def build(config): ...", "faulty:biuld", ["no 'biuld' in {file}", "did you mean 'build'"]),
    "syntax": ("def build(config:\n", "faulty:build", ["SyntaxError", "({file}:1)"]),
    "inner-import": ("x = 1\nimport no_such_module_here", "faulty:build", ["no_such_module_here", "({file}:2)"]),
    "error": ("raise KeyError('two\\nlines')", "faulty:build", ["KeyError", "({file}:1)"]),
    "path": ("", "code/faulty.py:build", ["did you mean 'code.faulty:build'"]),
    "suffix": ("", "faulty.py:build", ["did you mean 'faulty:build'"]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_in_a_module_is_one_line_with_its_place(case, tmp_path, monkeypatch):
    code, name, parts = FAULTS[case]
    file = tmp_path.resolve() / "faulty.py"
    file.write_text(code)
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    with importable([tmp_path]), pytest.raises(ValueError, match="`task` must") as raised:
        import_function(name)
    told = str(raised.value)
    assert name in told
    assert len(told.splitlines()) == 1
    for part in parts:
        assert part.format(file=file) in told


def test_home_is_the_folder_from_which_a_module_or_package_was_imported(tmp_path, monkeypatch):
    other, mine = tmp_path / "other", tmp_path / "mine"
    (mine / "pack" / "inner").mkdir(parents=True)
    other.mkdir()
    (mine / "pack" / "inner" / "__init__.py").write_text("def build(config): ...")
    (mine / "pack" / "tasks.py").write_text("def build(config): ...")
    for name in ("pack", "pack.inner", "pack.tasks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    folders = [other, mine]
    with importable(folders):
        for name in ("pack.inner:build", "pack.tasks:build"):
            import_function(name)
            assert home_of(name, folders) == mine.resolve()
    assert home_of("digits-mlp", folders) is None
    assert home_of("ray_deltastn.tasks.digits:digits_mlp", folders) is None


def test_only_python_files_are_copied_for_a_cluster(tmp_path):
    home, copy = tmp_path / "home", tmp_path / "copy"
    copy.mkdir()
    kept = ["task.py", "pack/__init__.py", "pack/deep/net.py"]
    left = ["data.bin", "results/checkpoint.pt", ".git/hook.py", ".hidden/x.py", "venv/lib/y.py", "notes.txt"]
    for name in kept + left:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (home / "venv" / "pyvenv.cfg").write_text("")
    os.symlink(home, home / "pack" / "circle")
    copy_code(home, copy)
    copied = {str(path.relative_to(copy)): path.read_text() for path in copy.rglob("*") if path.is_file()}
    assert copied == {name: name for name in map(str, map(Path, kept))}
