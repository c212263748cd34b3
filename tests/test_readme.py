"""The examples of the README run as they stand, and its links lead somewhere."""

import math
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_files_that_the_readme_links_to_exist(link):
    assert (ROOT / link).exists()


def test_readme_python_blocks_run_in_order(ray_cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) >= 2
    # As typed into a Python prompt: functions defined here travel to the workers by value.
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, block {number + 1}", "exec"), namespace)
    assert math.isfinite(namespace["analysis"].best_result["valid_loss"])
    for name in namespace["tuner"].space.names:
        assert math.isfinite(namespace["analysis"].best_result[f"hyperparameters/{name}"])
    assert [trial.status for trial in namespace["analysis"].trials] == ["TERMINATED"] * 4
    assert namespace["tuner"].done
    assert list(namespace["weights"]) == list(namespace["build"]({}).model.state_dict())
    assert "parameters in 2 layers respond" in capsys.readouterr().out
    assert Path(namespace["analysis"].experiment_path).is_relative_to(os.environ["HOME"])
