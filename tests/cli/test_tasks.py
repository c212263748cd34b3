"""The list of ready tasks says what the tasks are."""

import pytest

import ray_deltastn as rd
from ray_deltastn.cli import main
from ray_deltastn.cli.tasks import short
from ray_deltastn.tasks import images
from ray_deltastn.tasks.imports import import_function
from ray_deltastn.tasks.ready import READY
from tests.tasks import grammar
from tests.tasks.image_examples import made_up


def space_of(name, monkeypatch, tmp_path):
    """The hyperparameters of a ready task on made-up data."""
    monkeypatch.setattr(images, "load_images", lambda *_: (made_up(name, 20), made_up(name, 5)))
    if name == "mnist1d-mlp":
        pytest.importorskip("mnist1d")
    sizes = {"batch": 2, "length": 8}
    options = {"path": str(grammar.folder(tmp_path)), **sizes} if name in ("ptb-lstm", "char-transformer") else {}
    return import_function(READY[name].function)(options).space


@pytest.mark.parametrize("name", READY)
def test_the_hyperparameters_are_those_of_the_task(name, monkeypatch, tmp_path):
    space = space_of(name, monkeypatch, tmp_path)
    assert isinstance(space, rd.HyperSpace)
    assert READY[name].hyperparameters == space.names


def test_every_task_is_listed_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(name in line for line in lines) for name in READY)
    assert not any("…" in line for line in lines)


def test_runs_of_a_name_are_one_entry():
    assert short(["a0", "a1", "a2", "b", "c1", "a3"]) == ["a0–2", "b", "c1", "a3"]
