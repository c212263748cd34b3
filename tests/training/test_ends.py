"""A run ends after its epochs, when patience does, or when it diverges."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.training.runs import METHODS, STEPS, TUNING, NaNAfter, from_bytes, make_task, make_tuner, to_bytes


def test_run_ends_after_its_epochs():
    tuner = make_tuner(epochs=3)
    reports = list(tuner.fit())
    assert [r["epoch"] for r in reports] == [1, 2, 3]
    assert [r["steps"] for r in reports] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert [r["stop_reason"] for r in reports] == ["", "", "all epochs done"]
    assert tuner.done
    with pytest.raises(RuntimeError, match=r"`step` needs a run that has not ended, got .*all epochs done"):
        tuner.step()
    assert list(tuner.fit()) == []


@pytest.mark.parametrize("steps_per_report", [1, 2, 5, 13, 1000])
def test_steps_per_report(steps_per_report):
    reports = list(make_tuner(epochs=2, steps_per_report=steps_per_report).fit())
    assert [r["steps"] for r in reports] == [*range(steps_per_report, 2 * STEPS, steps_per_report), 2 * STEPS]
    assert [r["epoch"] for r in reports] == [r["steps"] // STEPS for r in reports]


@pytest.mark.parametrize("patience", [1, 3])
def test_run_ends_when_patience_does(patience):
    task = make_task(valid_loss=lambda output, y: output.sum() * 0 + 1)
    tuner = make_tuner(task, patience=patience, epochs=50)
    reports = list(tuner.fit())
    assert len(reports) == 1 + patience
    assert not tuner.last_report["diverged"]
    assert reports[-1]["stop_reason"] == f"no better validation loss in {patience} reports"
    assert [r["stop_reason"] for r in reports[:-1]] == [""] * patience


def test_patience_counts_from_the_best_report():
    losses = iter([5.0, 4.0, 4.5, 3.0, 3.0, 3.5, 9.9])
    tuner = make_tuner(patience=2, epochs=50)
    tuner.scores.valid_scores = lambda steps: {"loss": next(losses)}
    reports = list(tuner.fit())
    assert [r["best_valid_loss"] for r in reports] == [5.0, 4.0, 4.0, 3.0, 3.0, 3.0]
    assert tuner.done


def test_a_plateau_lowers_the_rate_by_four_and_a_small_rate_ends_the_run():
    # The rate falls after the fifth epoch in a row without improvement.
    losses = [5.0, 4.0, *[4.5] * 4, 3.0, *[3.5] * 5, *[3.5] * 5, 1.0, 1.0]
    plateau = {"name": "plateau", "factor": 0.25, "patience": 4}
    tuner = make_tuner(schedule=plateau, lr=1.0, min_lr=0.1, epochs=50)
    tuner.scores.valid_scores = lambda steps: {"loss": losses[steps // STEPS - 1]}
    reports = list(tuner.fit())
    assert [r["lr"] for r in reports] == [1.0] * 11 + [0.25] * 5 + [0.0625]
    assert [r["stop_reason"] for r in reports[:-1]] == [""] * 16
    assert reports[-1]["stop_reason"] == "learning rate 0.0625 below 0.1"
    assert not reports[-1]["diverged"]


def test_best_valid_loss_is_the_smallest_so_far():
    reports = list(make_tuner(lr=0.5, epochs=6).fit())
    losses = [r["valid_loss"] for r in reports]
    assert [r["best_valid_loss"] for r in reports] == [min(losses[: n + 1]) for n in range(len(losses))]


def assert_diverged(tuner, report):
    assert report["diverged"] is True
    assert report["stop_reason"].startswith("diverged")
    for words in ("train_loss=", "valid_loss=", f"step {report['steps']}"):
        assert words in report["stop_reason"]
    assert report["valid_loss"] == report["train_loss"] == report["test_loss"] == math.inf
    assert tuner.done
    with pytest.raises(RuntimeError, match="diverged"):
        tuner.step()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_loss_that_is_not_finite_ends_the_run_in_that_very_report(method, value):
    passes = 2 if method in ("centered-stn", "delta-stn") else 1
    task = make_task(loss=NaNAfter(passes * 9, value), valid_loss=F.cross_entropy)
    tuner = make_tuner(task, method, warmup_steps=100, steps_per_report=3, clip_grad=1.0)
    for _ in range(3):
        assert tuner.step()["diverged"] is False
        assert not tuner.done
    best = tuner.best_valid_loss
    report = tuner.step()
    assert report["steps"] == 12
    assert_diverged(tuner, report)
    assert report["best_valid_loss"] == best


@pytest.mark.parametrize("method", METHODS)
def test_validation_loss_that_is_not_finite_ends_the_run(method):
    task = make_task(valid_loss=lambda output, y: F.cross_entropy(output, y) * math.nan)
    tuner = make_tuner(task, method, epochs=10)
    report = tuner.step()
    assert_diverged(tuner, report)
    assert report["best_valid_loss"] == math.inf


@pytest.mark.parametrize("method", TUNING)
def test_hyperparameter_that_is_not_finite_ends_the_run_and_is_named(method):
    tuner = make_tuner(make_task(valid_loss=F.cross_entropy), method, warmup_steps=100)
    with torch.no_grad():
        tuner.space.raw_scale[1] = math.inf
    tuner.algorithm.train_step = lambda x, y: torch.zeros((), dtype=torch.float64)
    report = tuner.step()
    assert_diverged(tuner, report)
    assert "second" in report["stop_reason"]


@pytest.mark.parametrize("method", METHODS)
def test_huge_learning_rate_diverges(method):
    def quadratic(output, target):
        return F.mse_loss(output, F.one_hot(target, 3).to(output.dtype))

    tuner = make_tuner(make_task(loss=quadratic), method, lr=1e6, epochs=10)
    report = list(tuner.fit())[-1]
    assert_diverged(tuner, report)
    assert report["steps"] <= 2 * STEPS


def test_diverged_run_can_be_saved_and_stays_diverged():
    tuner = make_tuner(make_task(loss=NaNAfter(3), valid_loss=F.cross_entropy), steps_per_report=3)
    list(tuner.fit())
    other = make_tuner(steps_per_report=3)
    other.load_state_dict(from_bytes(to_bytes(tuner.state_dict())))
    assert other.done
    assert other.last_report["diverged"] is True
