"""The examples of the page about networks of libraries run as they stand, and few lines stand around each network."""

import math
import re

import pytest
import torch

from tests.models.checked import require
from tests.pages import text

PAGE = text("docs/models.md")
SECTION = re.compile(r"^## (.*?)\n.*?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXAMPLES = dict(SECTION.findall(PAGE))
#: Packages that may be missing.
OPTIONAL = ("transformers", "rtdl_revisiting_models", "torch_geometric")


def test_each_section_has_one_example():
    assert len(EXAMPLES) == len(re.findall("^## ", PAGE, re.MULTILINE)) == PAGE.count("```python\n")


@pytest.mark.parametrize("name", EXAMPLES)
def test_at_most_five_lines_stand_around_the_network(name):
    after = EXAMPLES[name].partition("\nnetwork = ")[2].partition("\n\n")[2]
    assert 0 < len(after.splitlines()) <= 5


CASES = [pytest.param(n, marks=[pytest.mark.slow] if "from transformers" in e else []) for n, e in EXAMPLES.items()]


@pytest.mark.parametrize("name", CASES)
def test_an_example_trains_and_its_hyperparameters_move(name):
    for package in OPTIONAL:
        if f"from {package}" in EXAMPLES[name]:
            require(package)
    torch.manual_seed(0)
    names = {"__name__": "__main__"}
    exec(compile(EXAMPLES[name], f"docs/models.md, {name}", "exec"), names)
    tuner, reports = names["tuner"], names["reports"]
    assert tuner.done
    assert all(math.isfinite(report["valid_loss"]) for report in reports)
    assert tuner.coverage.share > 0.5
    for one, value in tuner.hyperparameters().items():
        assert not math.isclose(value, tuner.space.hyperparameters[one].initial, rel_tol=1e-3), one
