"""The examples of the README and of the start page run as they stand, and the links of the README lead somewhere."""

import math
import os
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "docs/start.md"]


def blocks(page):
    """The Python examples of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", README))))
def test_files_that_the_readme_links_to_exist(link):
    assert (ROOT / link).exists()


def test_the_page_about_reuse_runs_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(blocks("docs/reuse.md")):
        exec(compile(block, f"docs/reuse.md, block {number + 1}", "exec"), namespace)
    assert len(namespace["schedule"]) == 8
    accuracy = (namespace["plain"].eval()(namespace["x"]).argmax(1) == namespace["y"]).float().mean()
    assert accuracy > 0.9


def test_the_page_about_your_own_model_trains_on_one_dictionary(capsys):
    (block,) = [block for block in blocks("docs/model.md") if "attention_mask" in block]
    namespace = {"__name__": "__main__"}
    torch.manual_seed(0)
    exec(compile(block, "docs/model.md", "exec"), namespace)
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 40
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_of_a_page_run_in_order(page, ray_cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As typed into a Python prompt: functions defined here travel to the workers by value.
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page}, block {number + 1}", "exec"), namespace)
    results, tuner, build = namespace["results"], namespace["tuner"], namespace["build"]
    assert tuner.done
    assert len(tuner.coverage.covered) == 4
    assert list(namespace["weights"]) == list(build({}).model.state_dict())
    best = results.get_best_result().metrics
    assert math.isfinite(best["valid_loss"])
    for name in tuner.space.names:
        assert math.isfinite(best[f"hyperparameters/{name}"])
    assert results.num_terminated == len(results) == 4
    assert Path(results.experiment_path).is_relative_to(os.environ["HOME"])
