"""A broken run goes on to the bit, and its own settings win after a state is loaded."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ray_deltastn as rd
from tests.training.runs import (
    DATA,
    METHODS,
    OPTIMISERS,
    assert_same_reports,
    assert_same_tensors,
    examples,
    from_bytes,
    make_task,
    make_tuner,
    reports_of,
    scramble_global_generators,
    tensors_of,
    to_bytes,
    without_seconds,
)


def assert_resumes(build, breaks=None):
    """The unbroken run, and runs broken after each of the reports `breaks` (all of them by default), are the same."""
    scramble_global_generators(5)
    unbroken = build()
    expected, saved = [], []
    for report in unbroken.fit():
        expected.append(without_seconds(report))
        saved.append(to_bytes(unbroken.state_dict()))
    final = tensors_of(unbroken)
    for number in breaks or range(1, len(expected)):
        scramble_global_generators(1000 + number)
        resumed = build()
        resumed.load_state_dict(from_bytes(saved[number - 1]))
        assert without_seconds(resumed.last_report) == expected[number - 1]
        scramble_global_generators(2000 + number)
        assert_same_reports(reports_of(resumed), expected[number:])
        assert_same_tensors(tensors_of(resumed), final)
        assert resumed.stop_reason == unbroken.stop_reason
        assert resumed.best_valid_loss == unbroken.best_valid_loss


# What data keep in a state has nothing to do with what optimisers do; either may have to do with the method.
@pytest.mark.parametrize(
    ("data", "optimiser"),
    [(data, "sgd-cosine") for data in DATA] + [("tensors", other) for other in OPTIMISERS if other != "sgd-cosine"],
)
@pytest.mark.parametrize("method", METHODS)
def test_broken_run_is_bit_identical_to_the_unbroken(method, data, optimiser):
    # Reports every 5 of 7 steps, cycles of 3: breaks fall inside epochs and inside cycles.
    settings = {**OPTIMISERS[optimiser], "steps_per_report": 5}
    assert_resumes(lambda: make_tuner(make_task(data), method, **settings), breaks=(1, 4))


@pytest.mark.parametrize(
    ("data", "steps_per_report"), [(data, 1) for data in DATA] + [("tensors", steps) for steps in (None, 4, 7)]
)
def test_run_may_be_broken_after_any_report(data, steps_per_report):
    settings = {**OPTIMISERS["adam-plateau"], "epochs": 3, "steps_per_report": steps_per_report}
    breaks = None if steps_per_report != 1 else (1, 6, 7, 8, 13)
    assert_resumes(lambda: make_tuner(make_task(data), **settings), breaks)


def test_run_broken_many_times_is_bit_identical():
    unbroken = make_tuner(steps_per_report=3)
    expected = reports_of(unbroken)
    actual, state = [], None
    while len(actual) < len(expected):
        tuner = make_tuner(steps_per_report=3)
        if state is not None:
            tuner.load_state_dict(from_bytes(state))
        actual.append(without_seconds(tuner.step()))
        state = to_bytes(tuner.state_dict())
    assert_same_reports(actual, expected)
    assert_same_tensors(tensors_of(tuner), tensors_of(unbroken))


def test_resume_with_batch_normalisation_cutout_and_fractions():
    def build():
        torch.manual_seed(0)
        space = rd.HyperSpace(
            holes=rd.Integer(1, low=0, high=3), length=rd.Integer(2, low=0, high=4), rate=rd.Bounded(0.2)
        )
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), rd.ChannelDropout("rate"), nn.Flatten(), nn.Linear(64, 2)
        )
        x = torch.randn(50, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        y = (x.mean((1, 2, 3)) > 0).long()
        augment = rd.Cutout("holes", "length")
        task = rd.Task(space=space, model=model, loss=F.cross_entropy, train=(x, y), valid=(x, y), augment=augment)
        return make_tuner(task, steps_per_report=3, response_fraction=0.5, valid_interval=2, clip_grad=0.5)

    assert_resumes(build, breaks=(1, 3))


@pytest.mark.parametrize("method", METHODS)
def test_resume_in_double_precision_with_tied_weights(method):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight
            self.drop, self.head = rd.Dropout("rate"), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.drop(torch.relu(self.second(torch.relu(self.first(x))))))

    def build():
        torch.manual_seed(0)
        (x, y), space = examples(60, 1), rd.HyperSpace(rate=rd.Bounded(0.2))
        pair = (x.double(), y)
        task = rd.Task(space=space, model=Tied().double(), loss=F.cross_entropy, train=pair, valid=pair)
        return make_tuner(task, method, steps_per_report=3, epochs=3)

    assert_resumes(build, breaks=(2,))


def test_fixed_schedule_resumes_inside_the_schedule():
    schedule = {"first": [0.1, 0.3, 0.5, 0.7]}
    assert_resumes(lambda: make_tuner(method="fixed", hyperparameters=schedule, steps_per_report=5))


@pytest.mark.parametrize("method", METHODS)
def test_loaded_run_has_the_hyperparameters_of_the_saved_one(method):
    settings = {"hyperparameters": {"first": [0.1, 0.3, 0.5, 0.7]}} if method == "fixed" else {}
    saved = make_tuner(method=method, **settings)
    for _ in range(3):
        saved.step()
    loaded = make_tuner(method=method, **settings)
    loaded.load_state_dict(from_bytes(to_bytes(saved.state_dict())))
    assert loaded.hyperparameters() == saved.hyperparameters()


def test_resume_keeps_the_count_of_patience():
    def build():
        torch.manual_seed(0)
        return make_tuner(make_task(valid_loss=lambda output, y: output.sum() * 0 + 1), patience=3, epochs=20)

    assert_resumes(build)


def test_resumed_run_with_a_shared_explicit_generator_drawn_from_during_the_pass():
    # Sampling with replacement draws from the generator again after every 32 examples, also while evaluations go on.
    def loader(x, y, generator):
        data = TensorDataset(x, y)
        sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=96, generator=generator)
        return DataLoader(data, batch_size=16, sampler=sampler)

    def build():
        generator = torch.Generator().manual_seed(random.randrange(2**40))
        task = make_task(train=loader(*examples(100, 1), generator), valid=loader(*examples(40, 2), generator))
        return make_tuner(task, steps_per_report=4, train_interval=2, epochs=3)

    assert_resumes(build)


def test_state_loaded_from_memory_shares_nothing_with_the_run_it_came_from():
    unbroken = make_tuner()
    unbroken.step()
    expected = make_tuner()
    expected.load_state_dict(from_bytes(to_bytes(unbroken.state_dict())))
    copy_of_it = make_tuner()
    copy_of_it.load_state_dict(unbroken.state_dict())
    reports_of(unbroken)
    assert_same_reports(reports_of(copy_of_it), reports_of(expected))
    assert_same_tensors(tensors_of(copy_of_it), tensors_of(expected))


def test_state_of_a_finished_run_is_finished():
    first = make_tuner(epochs=2)
    reports_of(first)
    second = make_tuner(epochs=2)
    second.load_state_dict(from_bytes(to_bytes(first.state_dict())))
    assert second.done
    assert second.stop_reason == "all epochs done"
    assert without_seconds(second.last_report) == without_seconds(first.last_report)


def test_finished_run_goes_on_under_more_epochs():
    # This run's own settings win over those of the saved state, `epochs` among them.
    long = make_tuner(epochs=4, hyper_decay=1.0)  # a decay depends on the length of the run
    expected = reports_of(long)
    short = make_tuner(epochs=2, hyper_decay=1.0)
    reports_of(short)
    longer = make_tuner(epochs=4, hyper_decay=1.0)
    longer.load_state_dict(from_bytes(to_bytes(short.state_dict())))
    assert_same_reports(reports_of(longer), expected[2:])


@pytest.mark.parametrize("method", METHODS)
def test_own_options_of_optimisers_win_after_loading(method):
    theta = {} if method == "fixed" else {"response_optimizer": "sgd"}
    saved = make_tuner(method=method, lr=0.05, momentum=0.9, hyper_lr=0.05, **theta)
    saved.step()
    own = make_tuner(method=method, lr=0.02, momentum=0.5, hyper_lr=0.01, scale_lr=0.03, hyper_decay=1.0, **theta)
    own.load_state_dict(from_bytes(to_bytes(saved.state_dict())))
    for _ in range(2):
        assert [g["lr"] for g in own.algorithm.weights_optimizer.param_groups] == [0.02]
        assert [g["momentum"] for g in own.algorithm.weights_optimizer.param_groups] == [0.5]
        if method != "fixed":
            assert [g["lr"] for g in own.algorithm.response_optimizer.param_groups] == [0.02]
            assert [g["momentum"] for g in own.algorithm.response_optimizer.param_groups] == [0.5]
            assert [g["lr"] for g in own.algorithm.hyper_optimizer.param_groups] == [0.01, 0.03]
        assert own.step()["lr"] == 0.02


def test_own_rate_of_rmsprop_wins_after_loading_and_its_moments_are_kept():
    saved = make_tuner(response_lr=0.02)
    saved.step()
    own = make_tuner()
    own.load_state_dict(from_bytes(to_bytes(saved.state_dict())))
    mine, theirs = (t.algorithm.response_optimizer.state_dict() for t in (own, saved))
    assert [group["lr"] for group in mine["param_groups"]] == [pytest.approx(1e-4)]  # 0.001 × (1 − momentum)
    for index, moments in theirs["state"].items():
        for name in ("square_avg", "momentum_buffer"):
            assert torch.equal(mine["state"][index][name], moments[name])


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_own_betas_win_after_loading(optimizer):
    saved = make_tuner(optimizer=optimizer, response_optimizer=optimizer, momentum=0.9)
    saved.step()
    own = make_tuner(optimizer=optimizer, response_optimizer=optimizer, momentum=0.6)
    own.load_state_dict(from_bytes(to_bytes(saved.state_dict())))
    for chosen in (own.algorithm.weights_optimizer, own.algorithm.response_optimizer):
        assert [g["betas"][0] for g in chosen.param_groups] == [0.6]


def test_moments_of_optimisers_are_kept_under_other_options():
    saved = make_tuner(lr=0.05)
    saved.step()
    own = make_tuner(lr=0.02)
    own.load_state_dict(from_bytes(to_bytes(saved.state_dict())))
    mine, theirs = (t.algorithm.weights_optimizer.state_dict()["state"] for t in (own, saved))
    for index in theirs:
        assert torch.equal(mine[index]["momentum_buffer"], theirs[index]["momentum_buffer"])


@pytest.mark.parametrize("optimiser", ["sgd-cosine", "adamw-multistep", "sgd-step"])
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_decay_of_the_schedule_is_kept_under_another_learning_rate(optimiser, factor):
    settings = {**OPTIMISERS[optimiser], "epochs": 5}
    settings["response_optimizer"] = settings.get("optimizer", "sgd")
    unbroken = make_tuner(**settings)
    rates = [report["lr"] for report in unbroken.fit()]
    saved = make_tuner(**settings)
    saved.step()
    saved.step()
    own = make_tuner(**{**settings, "lr": factor * settings["lr"]})
    own.load_state_dict(from_bytes(to_bytes(saved.state_dict())))
    assert own.algorithm.weights_optimizer.param_groups[0]["lr"] == pytest.approx(factor * rates[1])
    later = [(report["lr"], own.algorithm.response_optimizer.param_groups[0]["lr"]) for report in own.fit()]
    assert [lr for lr, _ in later] == pytest.approx([factor * rate for rate in rates[2:]])
    assert all(lr == response_lr for lr, response_lr in later)


def test_decay_of_a_plateau_schedule_is_kept_under_another_learning_rate():
    settings = {"schedule": {"name": "plateau", "patience": 0, "factor": 0.5}, "epochs": 6, "lr": 0.04}

    def build(**changes):
        return make_tuner(make_task(valid_loss=lambda output, y: output.sum() * 0 + 1), **{**settings, **changes})

    saved = build()
    rates = [saved.step()["lr"] for _ in range(3)]
    assert rates == pytest.approx([0.04, 0.02, 0.01])
    own = build(lr=0.4)
    own.load_state_dict(from_bytes(to_bytes(saved.state_dict())))
    assert [report["lr"] for report in own.fit()] == pytest.approx([0.05, 0.025, 0.0125])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_resume_on_a_gpu():
    assert_resumes(lambda: make_tuner(make_task("plain-dropout"), steps_per_report=5, device="cuda"), breaks=(1, 3))
