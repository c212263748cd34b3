"""Epochs until a target is reached, paired differences, and pairs of real trials."""

import json
import math

import pytest

from benchmarks import warm_start


def pair(cold, warm, other=(9.0,), **more):
    row = {"task": "t", "epochs": len(cold), "seed": 0, "cold": list(cold), "warm": list(warm), "other": list(other)}
    return {**row, "cold_test": [loss and 10 * loss for loss in cold], "warm_test": [20.0] * len(warm), **more}


def test_a_target_is_reached_at_the_first_epoch_at_or_below_it():
    assert warm_start.reached([3.0, None, 2.0, 1.0], 2.0) == 3
    assert warm_start.reached([3.0, 2.5], 2.0) is None
    assert warm_start.reached([None], math.inf) is None


def test_target_of_a_pair_is_the_best_loss_of_the_cold_trial():
    assert warm_start.outcome(pair([3.0, 1.0, 2.0], [1.0, 0.5, 4.0], [5.0, 4.0, 1.1])) == {
        "cold_epochs": 2,
        "warm_epochs": 1,
        "other_epochs": None,
        "cold_best": 1.0,
        "cold_test": 10.0,
        "warm_best": 0.5,
        "warm_test": 20.0,
    }


def test_trials_that_miss_the_target_are_counted_but_not_averaged():
    rows = [pair([3.0, 1.0], [1.0, 2.0]), pair([3.0, 1.0], [2.0, 1.5]), pair([1.0, 2.0], [3.0, 1.0], [0.5])]
    (entry,) = warm_start.summary(rows)
    assert entry["cold_epochs"] == {
        "reached": 3,
        "mean": pytest.approx(5 / 3, rel=1e-5),
        "std": entry["cold_epochs"]["std"],
    }
    assert entry["warm_epochs"]["reached"] == 2
    assert entry["other_epochs"] == {"reached": 1, "mean": 1.0, "std": None}
    assert (entry["difference"]["n"], entry["difference"]["mean"]) == (2, 0.0)
    assert entry["difference"]["half_width"] == pytest.approx(12.7062, rel=1e-4)  # t(0.975, 1) · √2 / √2
    assert entry["difference_best"]["mean"] == pytest.approx(0.5 / 3, rel=1e-5)
    text = "\n".join(warm_start.lines(rows))
    assert "reached in 2 of 3" in text
    assert "warm − cold, epochs: +0.0 ± 12.7 (95 %, 2 pairs)" in text


def test_difference_of_epochs_is_none_if_no_warm_trial_reaches_the_target():
    rows = [pair([1.0], [2.0]), pair([1.0], [2.0])]
    assert warm_start.summary(rows)[0]["difference"] == {"n": 0, "mean": None, "std": None, "half_width": None}
    assert "warm − cold, epochs: – (95 %, 0 pairs)" in "\n".join(warm_start.lines(rows))


def test_diverged_epochs_do_not_reach_the_target():
    assert warm_start.outcome(pair([2.0, None], [None, None]))["warm_best"] == math.inf
    assert warm_start.outcome(pair([2.0, None], [None, None]))["warm_epochs"] is None


def test_warm_trials_start_with_the_learned_values_of_the_next_seed(tmp_path, capsys):
    path = tmp_path / "record.json"
    warm_start.main(
        [
            "--task",
            "digits-mlp",
            "--seeds",
            "2",
            "--epochs",
            "2",
            "--set",
            "warmup=0",
            "--set",
            "width=8",
            "--json",
            str(path),
        ]
    )
    record = json.loads(path.read_text())
    first, second = record["rows"]
    assert (first["seed"], first["from_seed"], second["seed"], second["from_seed"]) == (0, 1, 1, 0)
    assert first["other"] == second["cold"]
    assert first["start"] != second["start"]
    assert first["start"].keys() == {"values", "scale"}
    assert first["cold"] != first["warm"]
    assert record["summary"][0]["n"] == 2
    assert "digits-mlp, 2 seeds, 2 epochs" in capsys.readouterr().out


def test_an_unknown_task_ends_with_one_error_line(refusal):
    assert (
        refusal(warm_start.main, "--task", "nothing")
        == "`--task` must be names from digits-mlp, fashion-cnn, got 'nothing'"
    )
