"""`import ray_deltastn`, and the help and the errors of the command, import no library that takes long."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import ray_deltastn as rd
from ray_deltastn.cli.parser import USES
from ray_deltastn.training.refit import Use

ROOT = Path(__file__).parents[1]
#: Libraries that take long to import, which a run may need.
HEAVY = (
    "ray",
    "torchvision",
    "pandas",
    "matplotlib",
    "skopt",
    "sklearn",
    "scipy",
    "optuna",
    "pyarrow",
    "jinja2",
    "PIL",
)
#: Libraries that take long to import, and that a check of a YAML file needs.
OF_TRAINING = ("torch", "pydantic", "numpy")
TERMINAL = ("rich",)

RUN = """
import json, sys
from ray_deltastn.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded(code, *arguments, folder=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(done.stdout.splitlines()[-1])), done.stderr


def test_importing_the_package_imports_no_library():
    found, _ = loaded(
        "import ray_deltastn, json, sys; print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    assert not found & {*HEAVY, *OF_TRAINING, *TERMINAL}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["run", "--help"], ["run", "--no-such-option"], ["no-such-command"], ["tasks", "-x"]],
    ids=" ".join,
)
def test_the_help_and_the_parser_import_no_library(arguments):
    found, _ = loaded(RUN, *arguments)
    assert not found & {*HEAVY, *OF_TRAINING, *TERMINAL}


SLIPS = {
    "no-file": (["run", "no_such_file.yaml"], "must be a readable file"),
    "unknown-option": (["run", "configs/digits_hybrid.yaml", "train.lrr=1"], "did you mean `train.lr`?"),
    "wrong-value": (["run", "configs/digits_hybrid.yaml", "train.momentum=2"], "momentum"),
    "domain": (["run", "configs/digits_hybrid.yaml", "search.lr=loguniform(0, 1)"], "`0 < low`"),
    "comparison": (["compare", "configs/digits_compare.yaml", "trils=3"], "did you mean `trials`?"),
    "wrong-command": (["run", "configs/digits_compare.yaml"], "use `ray-deltastn compare"),
    "no-folder": (["status", "no_such_folder"], "must hold an experiment"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_reported_without_the_libraries_that_runs_need(name):
    arguments, said = SLIPS[name]
    found, told = loaded(RUN, *arguments)
    assert said in told
    assert not found & set(HEAVY)


def test_all_names_are_listed_and_found():
    assert set(rd.__all__) <= set(dir(rd))
    assert {"training", "domains", "response"} <= set(dir(rd))
    for name in rd.__all__:
        assert getattr(rd, name) is getattr(rd, name)
    assert rd.domains.Bounded is rd.Bounded


def test_the_parser_knows_the_choices_of_the_library():
    assert get_args(Use) == USES
