"""What a report says, and when it warns."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

import ray_deltastn as rd
from ray_deltastn.training import scores
from ray_deltastn.training.scores import evaluate
from tests.training.runs import (
    METHODS,
    STEPS,
    TUNING,
    NaNAfter,
    examples,
    make_space,
    make_task,
    make_tuner,
    reports_of,
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("as_loader", [False, True])
def test_validation_loss_is_that_of_the_unperturbed_network_in_evaluation_mode(method, as_loader):
    (x, y), (test_x, test_y) = examples(41, 2), examples(30, 3)  # 41: the last batch of the loader is smaller
    valid = DataLoader(TensorDataset(x, y), batch_size=9) if as_loader else (x, y)
    task = make_task("plain-dropout", valid=valid)
    tuner = make_tuner(task, method, preset="paper")
    report = list(tuner.fit())[-1]
    assert report["hyperparameters/first"] > 0.01  # a perturbed or training-mode pass would show
    weights = {n: p.detach() for n, p in tuner.model.named_parameters()}
    if method == "stn":
        weights.update({n: p.detach() for n, p in tuner.response.fold(tuner.space.lam.detach()).items()})
    network = tuner.model.eval()
    with torch.no_grad():
        output, test_output = (functional_call(network, weights, (inputs,)) for inputs in (x, test_x))
    assert report["valid_loss"] == pytest.approx(F.cross_entropy(output, y).item(), rel=1e-5)
    assert report["valid_accuracy"] == pytest.approx((output.argmax(1) == y).double().mean().item())
    assert report["test_loss"] == pytest.approx(F.cross_entropy(test_output, test_y).item(), rel=1e-5)
    assert report["test_accuracy"] == pytest.approx((test_output.argmax(1) == test_y).double().mean().item())


def test_train_loss_is_the_mean_over_the_minibatches_since_the_last_report():
    seen = []

    def noted(output, target):
        loss = F.cross_entropy(output, target)
        if output.requires_grad:
            seen.append(loss.item())
        return loss

    task = make_task(
        loss=noted,
        valid_loss=F.cross_entropy,
        space=rd.HyperSpace(first=rd.Bounded(0.2), second=rd.Bounded(0.2)),
        penalty=(),
    )
    tuner = make_tuner(task, "fixed", steps_per_report=5)
    seen.clear()  # the loss has been tried out
    for report in tuner.fit():
        assert report["train_loss"] == pytest.approx(sum(seen) / len(seen), rel=1e-5)
        seen.clear()


def test_losses_per_example_are_those_of_their_mean():
    def each(output, target):
        return F.cross_entropy(output, target, reduction="none")

    per_example, mean = (reports_of(make_tuner(make_task(loss=loss))) for loss in (each, F.cross_entropy))
    for one, other in zip(per_example, mean, strict=True):
        assert one["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-4)
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


def test_signal_and_share_at_a_bound_are_those_of_the_moves_of_lambda(monkeypatch):
    space = make_space(second=rd.Bounded(0.0, low=0.0, high=0.9))
    tuner = make_tuner(make_task(space=space), warmup_steps=0, train_interval=1, hyper_lr=0.05, hyper_decay=0.5)
    moves, at_bound = [], []
    step = type(tuner.algorithm).hyper_step

    def spied(self, x, y):
        before = tuner.space.lam.detach().clone()
        out = step(self, x, y)
        low, high = tuner.space.box
        moves.append((tuner.space.lam.detach() - before) / tuner.optimizers.hyper.param_groups[0]["lr"])
        at_bound.append(((tuner.space.lam <= low) | (tuner.space.lam >= high)).double())
        return out

    monkeypatch.setattr(type(tuner.algorithm), "hyper_step", spied)
    for report in tuner.fit():
        found = torch.stack(moves).double()
        signal = found.mean(0).abs() / found.square().mean(0).sqrt()
        signal = signal.nan_to_num()  # a rate that stays on its limit does not move
        for i, name in enumerate(tuner.space.names):
            assert report[f"signal/{name}"] == pytest.approx(signal[i].item(), rel=1e-3)
            assert report[f"at_bound/{name}"] == pytest.approx(torch.stack(at_bound).mean(0)[i].item())
        moves.clear()
        at_bound.clear()
    assert 0 < report["signal/first"] < 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", [F.cross_entropy, NaNAfter(20)])
def test_every_report_has_the_keys_of_the_first(method, loss):
    task = make_task(loss=copy.copy(loss), valid_loss=F.cross_entropy, metrics={"top": lambda output, y: output.max()})
    reports = list(make_tuner(task, method, steps_per_report=5).fit())
    assert len(reports) > 1
    names = ("first", "second", "decay")
    assert set(reports[0]) == {
        "epoch",
        "steps",
        "hyper_steps",
        "train_loss",
        "valid_loss",
        "valid_accuracy",
        "valid_top",
        "test_loss",
        "test_accuracy",
        "test_top",
        "best_valid_loss",
        "lr",
        "response_size",
        "coverage/share",
        "coverage/largest_gap",
        "diverged",
        "stop_reason",
        *(f"hyperparameters/{name}" for name in names),
        *(f"scale/{name}" for name in names),
        *(f"signal/{name}" for name in names),
        *(f"at_bound/{name}" for name in names),
        "seconds/train",
        "seconds/hyper",
        "seconds/evaluate",
        "seconds/total",
        "warning/saturated",
        "warning/small_scale",
        "warning/large_steps",
        "warning/large_response",
        "warning/short_run",
    }
    for report in reports:
        assert list(report) == list(reports[0])
        assert {k: type(v) for k, v in report.items()} == {k: type(v) for k, v in reports[0].items()}


def test_without_test_data_nothing_is_reported_of_it():
    report = make_tuner(make_task(test=None)).step()
    assert not [key for key in report if key.startswith("test_")]


def regression(**changes):
    (x, _), (valid_x, _) = examples(100, 1), examples(40, 2)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), rd.Dropout("rate"), nn.Linear(8, 2))
    given = {"train": (x, x[:, :2]), "valid": (valid_x, valid_x[:, :2]), **changes}
    return rd.Task(space=rd.HyperSpace(rate=rd.Bounded(0.2)), model=model, loss=F.mse_loss, **given)


def test_accuracy_is_not_reported_for_regression():
    report = make_tuner(
        regression(test=examples(20, 3)[:1] * 2, valid_loss=lambda o, y: (o - y[:, :2]).square().mean())
    )
    assert not [key for key in report.step() if "accuracy" in key]


def test_own_metrics_are_means_over_all_examples():
    (x, _), biggest = examples(41, 2), lambda output, y: (output - y).abs().sum(1)
    valid = DataLoader(TensorDataset(x, x[:, :2]), batch_size=9)
    metrics = {"mean_error": lambda output, y: biggest(output, y).mean(), "errors": biggest, "constant": lambda o, y: 2}
    tuner = make_tuner(regression(valid=valid, metrics=metrics))
    report = tuner.step()
    with torch.no_grad():
        expected = biggest(tuner.model.eval()(x), x[:, :2]).mean().item()
    assert report["valid_mean_error"] == pytest.approx(expected, rel=1e-5)
    assert report["valid_errors"] == pytest.approx(expected, rel=1e-5)
    assert report["valid_constant"] == 2.0


def test_hyperparameters_are_reported_in_their_own_domain():
    tuner = make_tuner(warmup_steps=28)
    report = tuner.step()
    assert report["hyperparameters/first"] == pytest.approx(0.2)
    assert report["hyperparameters/decay"] == pytest.approx(1e-3)
    assert report["scale/first"] == pytest.approx(0.5)
    assert report["scale/decay"] == pytest.approx(1.0)
    assert tuner.hyperparameters() == {name: report[f"hyperparameters/{name}"] for name in tuner.space.names}


def test_seconds_add_up_and_grow():
    first, second = make_tuner(epochs=2).fit()
    for report in (first, second):
        parts = [report[f"seconds/{part}"] for part in ("train", "hyper", "evaluate")]
        assert min(parts) >= 0
        assert report["seconds/total"] == pytest.approx(sum(parts))
    assert second["seconds/train"] > first["seconds/train"] > 0


def test_an_evaluation_counts_whoever_asks_for_it(monkeypatch):
    clock = [0]
    monkeypatch.setattr(scores, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow(*arguments):
        clock[0] += 1
        return evaluate(*arguments)

    monkeypatch.setattr(scores, "evaluate", slow)
    for schedule in (None, {"name": "plateau"}):
        evaluations = [report["seconds/evaluate"] for report in make_tuner(epochs=2, schedule=schedule).fit()]
        assert evaluations == [2, 4], schedule  # validation and test data, each once an epoch


@pytest.mark.parametrize(("preset", "count"), [("paper", 2.0), ("recommended", 0.0)])
def test_saturated_hyperparameters_are_counted(preset, count):
    # The line is flat nowhere.
    space = make_space(first=rd.Bounded(0.899, low=0.0, high=0.9), second=rd.Bounded(0.001, low=0.0, high=0.9))
    report = make_tuner(make_task(space=space), warmup_steps=28, preset=preset).step()
    assert report["warning/saturated"] == count
    assert make_tuner(warmup_steps=28, preset=preset).step()["warning/saturated"] == 0.0


def test_small_strength_of_a_positive_hyperparameter_is_not_saturation():
    report = make_tuner(make_task(space=make_space(decay=rd.Positive(1e-8))), warmup_steps=28).step()
    assert report["warning/saturated"] == 0.0


def test_small_scales_are_counted():
    space = make_space(first=rd.Bounded(0.2, high=0.9, scale=1e-3), second=rd.Bounded(0.1, high=0.9, scale=0.009))
    assert make_tuner(make_task(space=space), tune_scale=False).step()["warning/small_scale"] == 2.0
    assert make_tuner().step()["warning/small_scale"] == 0.0


def test_first_rmsprop_step_is_reported_as_large():
    reports = list(make_tuner(warmup_steps=STEPS, train_interval=7, hyper_lr=0.01, preset="paper").fit())
    assert [r["warning/large_steps"] for r in reports[:2]] == [0.0, 1.0]


def test_small_hyper_steps_are_not_large():
    reports = list(make_tuner(hyper_optimizer="adam").fit())
    assert {r["warning/large_steps"] for r in reports} == {0.0}


def test_fixed_has_no_warnings():
    space = make_space(first=rd.Bounded(0.899, high=0.9, scale=1e-3))
    report = make_tuner(make_task(space=space), "fixed").step()
    assert {value for key, value in report.items() if key.startswith("warning/")} == {0.0}


@pytest.mark.parametrize("method", TUNING)
def test_run_too_short_to_cross_the_range_says_so_once_with_the_number(method):
    # 28 steps, 4 of them warm-up: 8 hyper steps of 0.05.
    with pytest.warns(rd.RunWarning) as caught:
        tuner = make_tuner(method=method, hyper_decay=1.0)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert ">= 4` should hold" in text
    assert "got 0.4: " in text
    assert "\n" not in text
    assert {r["warning/short_run"] for r in tuner.fit()} == {1.0}


@pytest.mark.filterwarnings("error::ray_deltastn.RunWarning")
def test_run_long_enough_does_not_warn():
    assert make_tuner(hyper_lr=0.5, hyper_decay=1.0).step()["warning/short_run"] == 0.0
    assert make_tuner(method="fixed", hyper_lr=1e-6).step()["warning/short_run"] == 0.0


def test_warning_points_at_the_line_that_starts_the_run():
    task = make_task()
    with pytest.warns(rd.RunWarning) as caught:
        rd.SelfTuner(task, epochs=2, batch_size=16)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "warned"), [({}, True), ({"tune_scale": False}, False), ({"preset": "paper"}, False)]
)
def test_a_tuned_scale_above_its_limit_is_warned_of(options, warned):
    space = make_space(first=rd.Bounded(0.2, high=0.9, scale=3.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_tuner(make_task(space=space), **options)
    text = "`scale <= 2` must hold for 'first' if σ is tuned, got 3: "
    assert any(text in str(w.message) for w in caught) is warned


@pytest.mark.parametrize("method", METHODS)
def test_reports_have_the_share_of_weights_that_respond(method):
    tuner = make_tuner(make_task(), method)
    model = tuner.model
    report = tuner.step()
    responds = tuner.method.responds
    assert (report["coverage/share"], report["coverage/largest_gap"]) == (1.0 if responds else 0.0, "")

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.gain = copy.deepcopy(model), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.gain * self.network(x)

    tuner.release()
    tuner = make_tuner(make_task(model=Scaled()), method)
    report, coverage = tuner.step(), tuner.coverage
    assert report["coverage/share"] == (coverage.share if responds else 0.0)
    assert report["coverage/largest_gap"] == (coverage.largest_gap if responds else "")
