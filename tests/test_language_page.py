"""The example of the page about language models runs as it stands, and is short."""

import math
import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[1] / "docs" / "language.md"


def test_the_example_learns_and_moves_its_rates():
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    torch.manual_seed(0)
    names = {"__name__": "__main__"}
    exec(compile(example, "docs/language.md", "exec"), names)
    perplexities = [report["valid_perplexity"] for report in names["reports"]]
    assert perplexities[-1] < perplexities[0] < 50
    for name, value in names["tuner"].hyperparameters().items():
        assert not math.isclose(value, 0.1, rel_tol=1e-3), name
