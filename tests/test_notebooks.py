"""The notebooks of the documentation run, each in less than a minute of one core, and are stored without outputs."""

import os
import resource
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
#: Notebook → number of pictures.
PICTURES = {
    "first_steps": 4,
    "replay": 1,
    "hybrid_search": 3,
}


def ray_too(name):
    return pytest.param(name, marks=[pytest.mark.slow, *([pytest.mark.ray] if name == "hybrid_search" else [])])


@pytest.mark.parametrize("name", list(map(ray_too, PICTURES)))
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    root = str(FOLDER.parents[1])
    for variable, value in {
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HOME": os.environ["HOME"],
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "0",  # the results have no table of reports without a logger
    }.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 60  # seconds of one core, whatever else runs on the machine
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[name]


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_is_stored_without_outputs(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_every_notebook_is_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(PICTURES)
