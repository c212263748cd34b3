"""STN's early spike of λ, by the learning rates of λ and of σ."""

import json

import pytest

from benchmarks import toy_spike as toy
from benchmarks.common.toy_problems import Problem
from tests.benchmarks.small_problems import small


def test_steps_outside_are_those_beyond_the_interval_of_start_and_optimum():
    assert toy.outside([0.0, 0.5, 1.0], 1.0) == 0
    assert toy.outside([0.0, 0.5, 1.29, 1.31, 0.5, -0.4], 1.0) == 2
    assert toy.outside([2.0, 2.2, 2.4, 1.0, -1.2], -1.0) == 1


@pytest.mark.parametrize("hyper_lr", [0.003, 0.05])
def test_first_hyper_step_is_ten_times_as_long_as_the_learning_rate(hyper_lr):
    path, _ = toy.trajectory(Problem("ridge", small()), "stn", 0, 1, hyper_lr, None)
    assert len(path) == 2
    assert abs(path[1] - path[0]) == pytest.approx(10 * hyper_lr, rel=1e-3)


def test_scale_moves_only_with_a_learning_rate_and_lambda_starts_in_the_same_direction():
    problem = Problem("ridge", small())
    (fixed, one), (tuned, scale) = (toy.trajectory(problem, "stn", 0, 20, 0.03, lr) for lr in (None, 0.03))
    assert one == pytest.approx(1.0)
    assert abs(scale - 1) > 0.1
    assert fixed[:2] == tuned[:2]
    assert fixed[-1] != tuned[-1]


def test_command_writes_a_record_and_a_picture_that_is_drawn_again(tmp_path, capsys):
    file, picture = tmp_path / "s.json", tmp_path / "s.png"
    run = ["--hyper-lrs", "0.01,0.1", "--scale-lrs", "0.05", "--seeds", "2", "--cycles", "4"]
    toy.main([*run, "--json", str(file), "--plot", str(picture)])
    found = json.loads(file.read_text())
    assert "missing" not in found
    assert len(found["rows"]) == 12
    assert [(e["sweep"], e["rate"], e["method"], e["n"]) for e in found["summary"]] == [
        (sweep, rate, method, 2)
        for sweep, rate in (("hyper_lr", 0.01), ("hyper_lr", 0.1), ("scale_lr", 0.05))
        for method in ("stn", "delta-stn")
    ]
    for entry in found["summary"]:
        assert (entry["scale_final"]["median"] == 1) == (entry["sweep"] == "hyper_lr")
    assert picture.stat().st_size > 10_000
    picture.unlink()
    toy.main(["--rows", str(file), "--plot", str(picture)])
    assert picture.exists()
    assert "scale_lr  diabetes" in capsys.readouterr().out


def test_wrong_arguments_end_with_one_error_line(refusal, tmp_path):
    assert refusal(toy.main, "--scale-lrs", "0") == "argument --scale-lrs: must be a finite number > 0, got '0'"
    assert "got 'yacht'" in refusal(toy.main, "--data", "yacht", "--data-root", str(tmp_path))
    assert "`method` must be one of" in refusal(toy.main, "--methods", "fxed")
