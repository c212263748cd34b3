"""The examples of the README and of four pages run as they stand, and the links of the README lead somewhere."""

import math
import os
import re
import warnings
from pathlib import Path

import pytest
import torch

import ray_deltastn as rd
from tests.pages import ROOT, run, text

README = text("README.md")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", README))))
def test_files_that_the_readme_links_to_exist(link):
    assert (ROOT / link).exists()


def test_the_page_about_reuse_runs_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", rd.RunWarning)
        namespace = run("docs/reuse.md")
    assert len(namespace["schedule"]) == 16
    accuracy = (namespace["plain"].eval()(namespace["x"]).argmax(1) == namespace["y"]).float().mean()
    assert accuracy > 0.9


def test_the_page_about_your_own_model_runs_in_order(capsys):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", rd.RunWarning)
        namespace = run("docs/model.md")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line[:1].isdigit() and "%" not in line]
    on_one_dictionary, on_images = rows[:40], rows[40:]
    assert len(on_images) == 30
    assert float(on_one_dictionary[-1][1]) < float(on_one_dictionary[0][1])
    assert len({decay for _, _, decay in on_images}) > 20
    output = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert namespace["macro_f1"](output, torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)
    assert namespace["tuner"].coverage.share == 1


def test_the_page_about_search_makes_a_search_and_schedulers():
    namespace = run("docs/search.md")
    assert isinstance(namespace["search"], namespace["tune"].Tuner)
    assert type(namespace["scheduler"]).__name__ == "PopulationBasedTraining"


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_python_blocks_of_a_page_run_in_order(page, ray_cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", rd.RunWarning)
        namespace = run(page)  # functions defined here travel to the workers by value
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
