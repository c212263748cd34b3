"""Noise of the gradient of the response, in cases where it is known."""

import json

import pytest
import torch

from benchmarks import response_noise
from tests.benchmarks.small_problems import ridge_run


def test_measuring_does_not_change_the_run():
    looked, alone = ridge_run()[2], ridge_run()[2]
    for tuner in (looked, alone):
        tuner.step()
    rows = response_noise.look(looked, [0.5, 1.0], 3)
    assert [(row["epoch"], row["fraction"]) for row in rows] == [(1, 0.5), (1, 1.0)]
    for tuner in (looked, alone):
        tuner.step()
    assert looked.last_report["valid_loss"] == alone.last_report["valid_loss"]
    assert torch.equal(looked.space.lam, alone.space.lam)


def test_noise_decreases_with_more_examples_and_with_antithetic_pairs():
    # A new response does not displace the weights. Without the effect of λ on the loss itself, ε and −ε give opposite
    # gradients.
    tuner = ridge_run()[2]
    few, many = (response_noise.noise(tuner, fraction, False, 400) for fraction in (0.25, 1.0))
    assert few / many == pytest.approx(4.0, rel=0.3)
    assert response_noise.noise(tuner, 0.25, True, 400) < 0.1 * few


def test_summary_is_over_the_runs():
    rows = [{"epoch": 1, "fraction": 0.25, "ratio": ratio} for ratio in (0.5, 0.2, 0.4)]
    assert response_noise.summary(rows) == [
        {"epoch": 1, "fraction": 0.25, "n": 3, "ratio": 0.4, "least": 0.2, "most": 0.5}
    ]


def test_command_writes_a_record(tmp_path, capsys):
    path = tmp_path / "noise.json"
    line = ["--task", "digits-mlp", "--set", "batch_size=64", "--set", "warmup=1", "--epochs", "1,2", "--draws", "2"]
    response_noise.main([*line, "--json", str(path)])
    found = json.loads(path.read_text())
    assert [(row["epoch"], row["fraction"]) for row in found["rows"]] == [(1, 0.25), (1, 1.0), (2, 0.25), (2, 1.0)]
    assert found["summary"] == response_noise.summary(found["rows"])
    assert found["draws"] == 2


def test_wrong_options_end_with_one_error_line(capsys):
    with pytest.raises(SystemExit):
        response_noise.main(["--fractions", "2"])
    assert "must be a finite number > 0 and <= 1, got '2'" in capsys.readouterr().err
