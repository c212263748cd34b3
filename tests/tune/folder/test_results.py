"""Texts of a config stay texts when results are written and read."""

import math

import pandas as pd
import pytest

from ray_deltastn.tune.folder.results import read_results, write_results

TEXTS = ["NA", "None", "null", "1e3", "01", "1", "True", "[/INST]", "a,b", "λ", "nan"]


@pytest.fixture
def written(tmp_path):
    count = len(TEXTS)
    results = pd.DataFrame(
        {
            "trial_id": [f"{n}e3" for n in range(count)],
            "valid_loss": [math.inf, math.nan, *map(float, range(count - 2))],
            "epoch": range(count),
            "diverged": [n % 2 == 0 for n in range(count)],
            "config/token": TEXTS,
            "config/lr": [0.1 / 3 * n for n in range(count)],
            "config/mixed": [1, "a", None, *(["1"] * (count - 3))],
        }
    )
    write_results(results, tmp_path)
    return results, tmp_path / "results.csv"


def test_texts_that_look_like_numbers_or_gaps_stay_texts(written):
    _, path = written
    found = read_results(path)
    assert found["config/token"].tolist() == TEXTS
    assert found["trial_id"].tolist() == [f"{n}e3" for n in range(len(TEXTS))]
    assert found["config/mixed"].iloc[:2].tolist() == ["1", "a"]
    assert pd.isna(found["config/mixed"].iloc[2])


def test_numbers_stay_the_same_numbers(written):
    results, path = written
    found = read_results(path)
    for name in ("valid_loss", "epoch", "diverged", "config/lr"):
        pd.testing.assert_series_equal(found[name], results[name])


def test_results_without_a_parquet_file_can_be_read(written):
    results, path = written
    path.with_name("results.parquet").unlink()
    pd.testing.assert_series_equal(read_results(path)["config/lr"], results["config/lr"])
