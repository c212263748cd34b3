"""The JSON schemas of the YAML files agree with the code and accept every file in `configs/`."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from ray_deltastn.cli import main
from ray_deltastn.cli.parser import KINDS

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMAS = {kind: json.loads((CONFIGS / f"{kind}.schema.json").read_text()) for kind in KINDS}
FILES = sorted(CONFIGS.glob("*.yaml"))


def kind_of(path):
    return "comparison" if path.stem.endswith("compare") else "experiment"


def errors(kind, content):
    return [e.message for e in jsonschema.Draft202012Validator(SCHEMAS[kind]).iter_errors(content)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_schema_agrees_with_the_code(kind, capsys):
    assert main(["schema", kind]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMAS[kind]
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_in_configs_names_its_schema_and_follows_it(path):
    text = path.read_text()
    assert text.startswith(f"# yaml-language-server: $schema={kind_of(path)}.schema.json\n")
    assert errors(kind_of(path), yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("train", "epoch", 3, "'epoch' was unexpected"),
        ("train", "optimizer", "sdg", "'sdg' is not one of"),
        ("train", "method", "delta-snt", "'delta-snt' is not one of"),
        ("train", "lr", 0, "0 is less than or equal to the minimum"),
        ("search", "lr", "loguniforn(0.01, 0.1)", "does not match"),
        ("search", "learning_rate", "loguniform(0.01, 0.1)", "'learning_rate' does not match any"),
        ("tune", "searcher", "boo", "'boo' is not one of"),
        ("tune", "samples", 3, "'samples' was unexpected"),
    ],
)
def test_a_mistake_is_an_error(section, key, value, said):
    content = yaml.safe_load((CONFIGS / "digits_hybrid.yaml").read_text())
    assert errors("experiment", content) == []
    content[section][key] = value
    (message,) = errors("experiment", content)
    assert said in message
