"""Numbers and texts in YAML files and in `--set`, by the rules of YAML 1.2."""

import math

import pytest

from tests.bad_inputs.made import assert_refused

pytest.importorskip("ray")
from ray_deltastn.tune.config import ConfigError, ExperimentConfig
from ray_deltastn.tune.reading import read_yaml

NUMBERS = {
    "1e-3": 1e-3,
    "1E-3": 1e-3,
    "-2e3": -2e3,
    "+1.5e+2": 150.0,
    "1.e2": 100.0,
    ".5": 0.5,
    "5.": 5.0,
    "0.1": 0.1,
    "007": 7,
    "-12": -12,
    "0x1F": 31,
    "0o17": 15,
    "-.inf": -math.inf,
}
TEXTS = ("1e", "e3", "1e-", "1:30", "190:20:30", "2026-01-31", "1_000", "0b11", "1.2.3", "--1", ".", "+", "1e3x")


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_of_yaml_1_2_is_a_number(text):
    found = read_yaml(text)
    assert (found, type(found)) == (NUMBERS[text], type(NUMBERS[text]))
    assert read_yaml(f"[{text}, {{a: {text}}}]") == [NUMBERS[text], {"a": NUMBERS[text]}]
    assert read_yaml(f"'{text}'") == text  # a quoted number is a text


def test_not_a_number_is_a_number():
    assert math.isnan(read_yaml(".nan"))


@pytest.mark.parametrize("text", TEXTS)
def test_what_yaml_1_2_calls_a_text_is_a_text(text):
    assert read_yaml(f"a: {text}") == {"a": text}


@pytest.mark.parametrize("text", ["on", "off", "yes", "no", "true", "False", "~", "null"])
def test_booleans_and_null_are_those_of_pyyaml(text):
    expected = {"on": True, "yes": True, "true": True, "~": None, "null": None}
    assert read_yaml(text) is expected.get(text, False)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("task: digits-mlp\ntrain: {lr: 1e-3, graph: on}\noptions: {strength: 1e-3, note: 1e}\n")
    return path


def test_numbers_in_a_file_and_in_set_are_numbers(file):
    config = ExperimentConfig.read(file, ["train.weight_decay=1e-5", "options.rate=2e-2", "tune.gpu=5e-1"])
    assert config.train == {"lr": 1e-3, "graph": True, "weight_decay": 1e-5}
    assert config.options == {"strength": 1e-3, "note": "1e", "rate": 2e-2}
    assert config.tune.gpu == 0.5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr='1e-3'", ["`lr > 0`", "a number", "'1e-3', a text"]),
        ("train.epochs='3'", ["`epochs >= 1`", "a whole number", "'3', a text"]),
        ("train.warmup='5'", ["`warmup`", "a number or 'auto'", "'5', a text"]),
        ("train.hyper_lr=1e", ["`hyper_lr`", "a number or 'auto'", "'1e', a text"]),
        ("tune.num_samples='8'", ["`tune.num_samples`", "a whole number", "'8', a text"]),
        ("tune.cpu='2'", ["`tune.cpu`", "a number", "'2', a text"]),
        ("tune.warm_start='yes'", ["`tune.warm_start`", "true or false", "'yes', a text"]),
        ("tune.seed=true", ["`tune.seed`", "a whole number", "True"]),
        ("search.momentum=choice(['0.5', 0.9])", ["`momentum >= 0", "a number", "'0.5', a text"]),
    ],
)
def test_a_text_where_a_number_belongs_is_called_a_text(file, override, words):
    assert_refused(lambda: ExperimentConfig.read(file, [override]), ConfigError, words)
