"""What editors and type checkers know of the options: every name, type and choice, and so every slip."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
from typing_extensions import Never, get_type_hints

from ray_deltastn.methods import METHODS, MethodName
from ray_deltastn.training.options import Options, OptionsOf, PresetName
from ray_deltastn.training.presets import PRESETS
from ray_deltastn.training.settings import Settings

ROOT = Path(__file__).parents[1]

#: Types that `Settings` converts: YAML 1.1 reads `on` and `off` as booleans.
MORE = {"graph": {bool}, "device": {torch.device}}
#: A user's program. A comment names what a type checker must say of its line.
PROGRAM = """
from ray import tune
import ray_deltastn as rd

def build(config: object) -> rd.Task:
    raise NotImplementedError

task = build(None)
tuner = rd.SelfTuner(task, "delta-stn", lr=0.1, hyper_lr="auto", schedule={"name": "cosine"}, clip_grad=None)
settings = rd.Settings(epochs=3, precision="bf16")
config: rd.TrialConfig = {"task": build, "method": "stn", "lr": tune.loguniform(1e-3, 1e-1), "resources": {"cpu": 1}}
searched: rd.TrialConfig = {"task": "digits-mlp", "optimizer": tune.choice(["sgd", "adam"]), "seed": 3}

tune.Tuner(rd.DeltaSTNTrainable, param_space={**config, "width": 100})
tune.run(rd.DeltaSTNTrainable, config={**searched})

rd.SelfTunr(task)  # Module has no attribute "SelfTunr"
rd.SelfTuner(task, learning_rate=0.1)  # Unexpected keyword argument "learning_rate"
rd.SelfTuner(task, hyper_lrs=0.1)  # did you mean "hyper_lr"
rd.SelfTuner(task, optimizer="sdg")  # Argument "optimizer" to "SelfTuner" has incompatible type
rd.SelfTuner(task, "delta-snt")  # Argument 2 to "SelfTuner" has incompatible type
rd.SelfTuner(task, epochs="3")  # Argument "epochs" to "SelfTuner" has incompatible type "str"
rd.SelfTuner(task, hyper_lr="fast")  # Argument "hyper_lr" to "SelfTuner" has incompatible type
rd.Settings(epoch=3)  # Unexpected keyword argument "epoch"
rd.Settings(preset="quick")  # Argument "preset" to "Settings" has incompatible type
wrong_name: rd.TrialConfig = {"task": build, "epoch": 3}  # Extra key "epoch" for TypedDict
wrong_choice: rd.TrialConfig = {"task": build, "precision": "fp8"}  # Incompatible types
wrong_resource: rd.TrialConfig = {"task": build, "resources": {"gpus": 1}}  # Extra key "gpus"
no_task: rd.TrialConfig = {"epochs": 3}  # Missing key "task"
"""


def alternatives(hint: Any) -> set[Any]:
    """Types of a union, with the choices of its literals one by one."""
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(alternatives, get_args(hint)))
    return {hint}


@pytest.mark.slow
def test_a_type_checker_reports_each_slip_of_a_users_program_and_nothing_else(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-warn-unused-configs", str(program)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    said = re.findall(r"program\.py:(\d+): error: (.*)", done.stdout)
    expected = {
        str(number): line.partition("  # ")[2] for number, line in enumerate(PROGRAM.split("\n"), 1) if "  # " in line
    }
    assert [number for number, _ in said] == list(expected), done.stdout + done.stderr
    for number, message in said:
        assert expected[number] in message


def test_options_have_the_names_and_types_of_the_settings():
    declared, settings = get_type_hints(OptionsOf), get_type_hints(Settings)
    assert list(declared) == [name for name in Settings.names() if name != "method"]
    (other,) = OptionsOf.__parameters__
    for name, hint in declared.items():
        # A preset decides what is None.
        more = {type(None)} if name in PRESETS["paper"] else MORE.get(name, set())
        assert alternatives(hint) == alternatives(settings[name]) | more | {other}, name


def test_choices_are_those_that_the_code_knows():
    assert set(get_args(MethodName)) == set(METHODS)
    assert set(get_args(PresetName)) == set(PRESETS)
    assert Options == OptionsOf[Never]
