"""The training loop: exact resume, repeatability, warm-up and cycles, stopping, and what a report says."""

import copy
import io
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ray_deltastn as rd
from ray_deltastn import random_state
from ray_deltastn.methods import METHODS as ALL_METHODS

TUNING = [name for name, method in ALL_METHODS.items() if method.responds]
#: Methods for any hyperparameter; `ift` and `unrolled`, for penalties only, have tests of their own.
METHODS = {name: method for name, method in ALL_METHODS.items() if method.responds or not method.tunes}
STEPS = 7  # train steps in an epoch: 100 examples in batches of 16


def examples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, :3] + 0.5 * torch.randn(count, 3, generator=generator)).argmax(1)


class Noisy(Dataset):
    """Examples whose transform draws from the global generators, PyTorch's and Python's."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + 0.1 * torch.randn(6) + 0.1 * random.random(), self.y[index]


def as_tensors(x, y):
    return x, y


def as_noisy_loader(x, y):
    return DataLoader(Noisy(x, y), batch_size=16, shuffle=True)


def as_generator_loader(x, y):
    # A generator in an unknown state, as a user's program leaves it.
    generator = torch.Generator().manual_seed(random.randrange(2**40))
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=generator)


DATA = {
    "tensors": as_tensors,
    "noisy-loader": as_noisy_loader,
    "generator-loader": as_generator_loader,
    "plain-dropout": as_tensors,
}

OPTIMISERS = {
    "sgd-cosine": {"optimizer": "sgd", "lr": 0.05, "schedule": "cosine"},
    "adam-plateau": {
        "optimizer": "adam",
        "lr": 0.02,
        "schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "threshold": 0.2},
    },
    "adamw-multistep": {
        "optimizer": "adamw",
        "lr": 0.02,
        "hyper_optimizer": "adam",
        "schedule": {"name": "multistep", "milestones": [1, 3], "gamma": 0.3},
    },
    "sgd-step": {"optimizer": "sgd", "lr": 0.05, "schedule": {"name": "step", "step_size": 1, "gamma": 0.5}},
}


def make_space(**changes):
    hyperparameters = {
        "first": rd.Bounded(0.2, low=0.0, high=0.9),
        "second": rd.Bounded(0.1, low=0.0, high=0.9, per="batch"),
        "decay": rd.Positive(1e-3),
        **changes,
    }
    return rd.HyperSpace(**hyperparameters)


def make_model(plain_dropout=False):
    middle = nn.Dropout(0.3) if plain_dropout else nn.Identity()
    return nn.Sequential(rd.Dropout("first"), nn.Linear(6, 8), nn.ReLU(), middle, rd.Dropout("second"), nn.Linear(8, 3))


def make_task(data="tensors", space=None, **changes):
    torch.manual_seed(11)
    given = {
        "space": space or make_space(),
        "model": make_model(data == "plain-dropout"),
        "loss": F.cross_entropy,
        "train": DATA[data](*examples(100, 1)),
        "valid": DATA[data](*examples(40, 2)),
        "test": examples(30, 3),
        "penalty": rd.L2("decay"),
        **changes,
    }
    return rd.Task(**given)


def make_tuner(task=None, method="delta-stn", **settings):
    given = {
        "epochs": 4,
        "batch_size": 16,
        "lr": 0.05,
        "hyper_lr": 0.05,
        "train_interval": 3,
        "warmup_steps": 4,
        **settings,
    }
    return rd.SelfTuner(task or make_task(), method=method, **given)


def without_seconds(report):
    return {key: value for key, value in report.items() if not key.startswith("seconds/")}


def reports_of(tuner):
    return [without_seconds(report) for report in tuner.fit()]


def tensors_of(tuner):
    """λ, σ, w₀ with its buffers, and Θ, by name."""
    found = {"lam": tuner.space.lam.detach(), "raw_scale": tuner.space.raw_scale.detach()}
    found.update({f"model.{name}": value for name, value in tuner.model.state_dict().items()})
    if tuner.response is not None:
        found.update({f"response.{name}": value for name, value in tuner.response.state_dict().items()})
    return {name: value.clone() for name, value in found.items()}


def assert_same_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), f"{name} differs"


def assert_same_reports(actual, expected):
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.keys() == theirs.keys()
        different = {key: (mine[key], theirs[key]) for key in theirs if mine[key] != theirs[key]}
        assert not different, f"at step {theirs['steps']}"


def to_bytes(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def from_bytes(content):
    return torch.load(io.BytesIO(content), weights_only=True)


def scramble_global_generators(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


# --- exact resume ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_broken_run_is_bit_identical_to_the_unbroken(method, data, optimiser):
    # Reports every 5 of 7 steps, cycles of 3: breaks fall inside epochs and inside cycles.
    settings = {**OPTIMISERS[optimiser], "steps_per_report": 5}
    assert_resumes(lambda: make_tuner(make_task(data), method, **settings), breaks=(1, 4))


@pytest.mark.parametrize("steps_per_report", [None, 1, 4, 7])
@pytest.mark.parametrize("data", DATA)
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
    long = make_tuner(epochs=4)
    expected = reports_of(long)
    short = make_tuner(epochs=2)
    reports_of(short)
    longer = make_tuner(epochs=4)
    longer.load_state_dict(from_bytes(to_bytes(short.state_dict())))
    assert_same_reports(reports_of(longer), expected[2:])


# --- this run's own settings win after loading -----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_own_options_of_optimisers_win_after_loading(method):
    saved = make_tuner(method=method, lr=0.05, momentum=0.9, hyper_lr=0.05)
    saved.step()
    own = make_tuner(method=method, lr=0.02, momentum=0.5, hyper_lr=0.01, scale_lr=0.03)
    own.load_state_dict(from_bytes(to_bytes(saved.state_dict())))
    for _ in range(2):
        assert [g["lr"] for g in own.algorithm.weights_optimizer.param_groups] == [0.02]
        assert [g["momentum"] for g in own.algorithm.weights_optimizer.param_groups] == [0.5]
        if method != "fixed":
            assert [g["lr"] for g in own.algorithm.response_optimizer.param_groups] == [0.02]
            assert [g["momentum"] for g in own.algorithm.response_optimizer.param_groups] == [0.5]
            assert [g["lr"] for g in own.algorithm.hyper_optimizer.param_groups] == [0.01, 0.03]
        assert own.step()["lr"] == 0.02


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_own_betas_win_after_loading(optimizer):
    saved = make_tuner(optimizer=optimizer, momentum=0.9)
    saved.step()
    own = make_tuner(optimizer=optimizer, momentum=0.6)
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


# --- repeatability ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_same_seed_gives_the_same_run(method, data):
    runs = []
    for number in range(2):
        scramble_global_generators(number)
        tuner = make_tuner(make_task(data), method, seed=3, epochs=2)
        scramble_global_generators(10 + number)
        runs.append((reports_of(tuner), tensors_of(tuner)))
    assert_same_reports(runs[0][0], runs[1][0])
    assert_same_tensors(runs[0][1], runs[1][1])


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_another_seed_gives_another_run(method, data):
    first, second = (reports_of(make_tuner(make_task(data), method, seed=seed, epochs=2)) for seed in (3, 4))
    assert first[-1]["train_loss"] != second[-1]["train_loss"]
    assert first[-1]["valid_loss"] != second[-1]["valid_loss"]


@pytest.mark.parametrize("data", DATA)
def test_runs_stepped_alternately_are_those_run_one_after_the_other(data):
    apart = [reports_of(make_tuner(make_task(data), seed=seed, steps_per_report=5)) for seed in (0, 1)]
    first, second = (make_tuner(make_task(data), seed=seed, steps_per_report=5) for seed in (0, 1))
    together = [[], []]
    while not first.done:
        together[0].append(without_seconds(first.step()))
        together[1].append(without_seconds(second.step()))
    assert_same_reports(together[0], apart[0])
    assert_same_reports(together[1], apart[1])


def global_generators():
    return random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2:], torch.get_rng_state()


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_run_leaves_the_global_generators_as_they_were(method, data):
    task = make_task(data)
    scramble_global_generators(7)
    before = global_generators()
    tuner = make_tuner(task, method)
    tuner.step()
    tuner.load_state_dict(from_bytes(to_bytes(tuner.state_dict())))
    tuner.step()
    after = global_generators()
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])


def test_run_leaves_the_global_generators_as_they_were_when_it_fails():
    def fails(output, target):
        torch.randn(3)
        if len(output) == 16:
            raise KeyboardInterrupt
        return F.cross_entropy(output, target)

    tuner = make_tuner(make_task(loss=fails))
    scramble_global_generators(7)
    before = global_generators()
    with pytest.raises(KeyboardInterrupt):
        tuner.step()
    after = global_generators()
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_frequent_reports_do_not_change_what_is_learnt(method, data):
    seldom, often = (make_tuner(make_task(data), method, steps_per_report=n, epochs=3) for n in (None, 2))
    reports_of(seldom)
    reports_of(often)
    assert_same_tensors(tensors_of(often), tensors_of(seldom))


def test_evaluation_on_random_data_does_not_change_what_is_learnt():
    # The validation data and the model's plain dropout both draw from PyTorch's global generator.
    def build(**settings):
        return make_tuner(make_task("plain-dropout", valid=as_noisy_loader(*examples(40, 2))), epochs=3, **settings)

    seldom, often = build(), build(steps_per_report=2)
    reports_of(seldom)
    reports_of(often)
    assert_same_tensors(tensors_of(often), tensors_of(seldom))


# --- warm-up and cycles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TUNING)
def test_hyperparameters_move_only_after_warmup(method):
    tuner = make_tuner(method=method, warmup=2, warmup_steps=None, train_interval=1, epochs=4)
    start_lam, start_scale = tuner.space.lam.detach().clone(), tuner.space.scale.detach().clone()
    for _ in range(2):
        tuner.step()
        assert torch.equal(tuner.space.lam, start_lam)
        assert torch.equal(tuner.space.scale, start_scale)
    tuner.step()
    assert (tuner.space.lam != start_lam).all()
    assert (tuner.space.scale != start_scale).all()


@pytest.mark.parametrize("method", TUNING)
def test_warmup_trains_weights_and_response_on_perturbed_hyperparameters(method):
    tuner = make_tuner(method=method, warmup=4)
    before = tensors_of(tuner)
    tuner.step()
    after = tensors_of(tuner)
    assert not torch.equal(after["model.1.weight"], before["model.1.weight"])
    assert not torch.equal(after["response.U"], before["response.U"])


@pytest.mark.parametrize("warmup_steps", [0, 1, 9])
def test_first_hyper_step_comes_after_warmup_steps(warmup_steps):
    tuner = make_tuner(warmup_steps=warmup_steps, warmup=100, train_interval=1, steps_per_report=1)
    start = tuner.space.lam.detach().clone()
    moved = []
    for _ in range(12):
        tuner.step()
        moved.append(not torch.equal(tuner.space.lam, start))
    assert moved == [step > warmup_steps for step in range(1, 13)]


def count_hyper_steps(tuner):
    """Run to the end, and note the train step after which each hyper step was taken."""
    taken, hyper_step = [], tuner.algorithm.hyper_step

    def counted(x, y):
        taken.append(tuner.steps)
        assert not tuner.model.training
        return hyper_step(x, y)

    tuner.algorithm.hyper_step = counted
    reports_of(tuner)
    return taken


@pytest.mark.parametrize(
    ("train_interval", "valid_interval", "warmup_steps"), [(5, 1, 0), (3, 2, 6), (1, 1, 7), (4, 3, 8), (28, 1, 0)]
)
@pytest.mark.parametrize("method", TUNING)
def test_hyper_steps_follow_the_plan(method, train_interval, valid_interval, warmup_steps):
    tuner = make_tuner(
        method=method, train_interval=train_interval, valid_interval=valid_interval, warmup_steps=warmup_steps
    )
    taken = count_hyper_steps(tuner)
    cycles = range(warmup_steps + train_interval, 4 * STEPS + 1, train_interval)
    assert taken == [step for step in cycles for _ in range(valid_interval)]


@pytest.mark.parametrize("steps_per_report", [None, 2, 5])
def test_reports_do_not_disturb_the_cycle(steps_per_report):
    assert count_hyper_steps(make_tuner(steps_per_report=steps_per_report)) == [6, 9, 12, 15, 18, 21, 24, 27]


@pytest.mark.parametrize("warmup_steps", range(8))
def test_number_of_hyper_steps_is_the_planned_one(warmup_steps):
    tuner = make_tuner(warmup_steps=warmup_steps, train_interval=5, valid_interval=2, hyper_lr=0.01)
    assert len(count_hyper_steps(tuner)) * 0.01 == pytest.approx(tuner.health.reach)


def test_scale_keeps_its_value_unless_tuned():
    tuner = make_tuner(tune_scale=False)
    reports = reports_of(tuner)
    assert reports[-1]["hyperparameters/first"] != pytest.approx(0.2, abs=1e-4)
    assert all(r[f"scale/{name}"] == pytest.approx(1.0) for r in reports for name in tuner.space.names)
    assert len({r["scale/first"] for r in reports}) == 1


@pytest.mark.parametrize("method", TUNING)
def test_large_entropy_weight_widens_the_perturbation(method):
    reports = reports_of(make_tuner(method=method, entropy_weight=100.0))
    for name in ("first", "second", "decay"):
        scales = [report[f"scale/{name}"] for report in reports]
        assert scales == sorted(scales)
        assert scales[-1] > 1.2


@pytest.mark.parametrize("method", TUNING)
def test_own_learning_rate_of_the_scale_counts(method):
    # The first RMSprop step is ten times its learning rate, whatever the gradient.
    tuner = make_tuner(method=method, warmup_steps=0, steps_per_report=3, hyper_lr=0.01, scale_lr=0.001)
    raw, lam = tuner.space.raw_scale.detach().clone(), tuner.space.lam.detach().clone()
    tuner.step()
    assert (tuner.space.lam.detach() - lam).abs().max().item() == pytest.approx(0.1, rel=1e-2)
    assert (tuner.space.raw_scale.detach() - raw).abs().max().item() == pytest.approx(0.01, rel=1e-2)


def test_fixed_keeps_its_constants():
    reports = reports_of(make_tuner(method="fixed", hyperparameters={"first": 0.4}))
    assert {r["hyperparameters/first"] for r in reports} == {0.4}
    assert {r["hyperparameters/second"] for r in reports} == {0.1}
    assert {r["scale/first"] for r in reports} == {0.0}


def test_fixed_follows_a_schedule_by_epoch():
    table = {"first": [0.1, 0.3, 0.5], "decay": 0.01}
    tuner = make_tuner(method="fixed", hyperparameters=table, epochs=5)
    used, train_step = [], tuner.algorithm.train_step

    def noted(x, y):
        used.append(round(tuner.objective.current_values()[0].item(), 9))
        return train_step(x, y)

    tuner.algorithm.train_step = noted
    reports = reports_of(tuner)
    assert used == [v for v in (0.1, 0.3, 0.5, 0.5, 0.5) for _ in range(STEPS)]
    assert [r["hyperparameters/first"] for r in reports] == [0.1, 0.3, 0.5, 0.5, 0.5]
    assert {r["hyperparameters/decay"] for r in reports} == {0.01}


def test_reports_inside_an_epoch_show_the_value_in_use():
    tuner = make_tuner(method="fixed", hyperparameters={"first": [0.1, 0.3, 0.5, 0.7]}, steps_per_report=5)
    shown = [(r["steps"], r["hyperparameters/first"]) for r in tuner.fit()]
    assert shown == [(5, 0.1), (10, 0.3), (15, 0.5), (20, 0.5), (25, 0.7), (28, 0.7)]


def test_fixed_is_plain_training():
    # No perturbation, no response: the same as ten lines of PyTorch.
    torch.manual_seed(0)
    (x, y), valid = examples(64, 1), examples(40, 2)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    plain = copy.deepcopy(model)
    space = rd.HyperSpace(decay=rd.Positive(1e-3))
    task = rd.Task(space=space, model=model, loss=F.cross_entropy, train=(x, y), valid=valid, penalty=rd.L2("decay"))
    reports = reports_of(make_tuner(task, "fixed", batch_size=64, hyperparameters={"decay": 0.02}, epochs=5))
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    expected = F.cross_entropy(plain(valid[0]), valid[1]).item()
    assert reports[-1]["valid_loss"] == pytest.approx(expected, rel=1e-5)


# --- clipping and fractions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_clipped_gradient_bounds_the_step(method):
    def steep(output, target):
        return 1e4 * F.cross_entropy(output, target)

    tuner = make_tuner(make_task(loss=steep), method, lr=0.01, momentum=0.0, clip_grad=0.5, steps_per_report=1)
    for _ in range(8):
        before = tensors_of(tuner)
        tuner.step()
        after = tensors_of(tuner)
        for part in ("model.", "response."):
            moves = [(after[name] - before[name]).square().sum() for name in after if name.startswith(part)]
            if moves and part == "model.":
                assert torch.stack(moves).sum().sqrt().item() == pytest.approx(0.5 * 0.01, rel=1e-3)
            elif moves:
                assert torch.stack(moves).sum().sqrt().item() <= 0.5 * 0.01 * 1.001


@pytest.mark.parametrize(("fraction", "rows"), [(1.0, 16), (0.5, 8), (0.25, 4), (0.01, 1)])
@pytest.mark.parametrize("method", ["centered-stn", "delta-stn"])
def test_response_is_trained_on_its_fraction_of_each_minibatch(method, fraction, rows):
    sizes = []

    def noted(output, target):
        if output.requires_grad:
            sizes.append(len(output))
        return F.cross_entropy(output, target)

    task = make_task(loss=noted, valid_loss=F.cross_entropy)
    make_tuner(task, method, response_fraction=fraction, steps_per_report=3, warmup_steps=10).step()
    assert sizes == [16, rows] * 3


# --- stopping --------------------------------------------------------------------------------------------------------


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
    tuner.tally.valid_scores = lambda steps: {"loss": next(losses)}
    reports = list(tuner.fit())
    assert [r["best_valid_loss"] for r in reports] == [5.0, 4.0, 4.0, 3.0, 3.0, 3.0]
    assert tuner.done


def test_best_valid_loss_is_the_smallest_so_far():
    reports = list(make_tuner(lr=0.5, epochs=6).fit())
    losses = [r["valid_loss"] for r in reports]
    assert [r["best_valid_loss"] for r in reports] == [min(losses[: n + 1]) for n in range(len(losses))]


# --- divergence ------------------------------------------------------------------------------------------------------


class NaNAfter:
    """Cross entropy that turns to NaN after some training minibatches."""

    def __init__(self, calls, value=math.nan):
        self.calls, self.value = calls, value

    def __call__(self, output, target):
        loss = F.cross_entropy(output, target)
        if output.requires_grad:
            self.calls -= 1
        return loss * self.value if self.calls < 0 else loss


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


# --- what a report says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("as_loader", [False, True])
def test_validation_loss_is_that_of_the_unperturbed_network_in_evaluation_mode(method, as_loader):
    (x, y), (test_x, test_y) = examples(41, 2), examples(30, 3)  # 41: the last batch of the loader is smaller
    valid = DataLoader(TensorDataset(x, y), batch_size=9) if as_loader else (x, y)
    task = make_task("plain-dropout", valid=valid)
    tuner = make_tuner(task, method)
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

    task = make_task(loss=noted, valid_loss=F.cross_entropy, space=rd.HyperSpace(first=rd.Bounded(0.2),
                     second=rd.Bounded(0.2)), penalty=())  # fmt: skip
    tuner = make_tuner(task, "fixed", steps_per_report=5)
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", [F.cross_entropy, NaNAfter(20)])
def test_every_report_has_the_keys_of_the_first(method, loss):
    task = make_task(loss=copy.copy(loss), valid_loss=F.cross_entropy, metrics={"top": lambda output, y: output.max()})
    reports = list(make_tuner(task, method, steps_per_report=5).fit())
    assert len(reports) > 1
    names = ("first", "second", "decay")
    assert set(reports[0]) == {
        "epoch", "steps", "train_loss", "valid_loss", "valid_accuracy", "valid_top", "test_loss", "test_accuracy",
        "test_top", "best_valid_loss", "lr", "diverged", "stop_reason",
        *(f"hyperparameters/{name}" for name in names), *(f"scale/{name}" for name in names),
        "seconds/train", "seconds/hyper", "seconds/evaluate", "seconds/total",
        "warning/saturated", "warning/small_scale", "warning/large_steps", "warning/short_run",
    }  # fmt: skip
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
    assert report["scale/first"] == pytest.approx(1.0)
    assert tuner.hyperparameters() == {name: report[f"hyperparameters/{name}"] for name in tuner.space.names}


def test_seconds_add_up_and_grow():
    first, second = make_tuner(epochs=2).fit()
    for report in (first, second):
        parts = [report[f"seconds/{part}"] for part in ("train", "hyper", "evaluate")]
        assert min(parts) >= 0
        assert report["seconds/total"] == pytest.approx(sum(parts))
    assert second["seconds/train"] > first["seconds/train"] > 0


# --- warnings --------------------------------------------------------------------------------------------------------


def test_saturated_hyperparameters_are_counted():
    space = make_space(first=rd.Bounded(0.899, low=0.0, high=0.9), second=rd.Bounded(0.001, low=0.0, high=0.9))
    report = make_tuner(make_task(space=space), warmup_steps=28).step()
    assert report["warning/saturated"] == 2.0
    assert make_tuner(warmup_steps=28).step()["warning/saturated"] == 0.0


def test_small_strength_of_a_positive_hyperparameter_is_not_saturation():
    report = make_tuner(make_task(space=make_space(decay=rd.Positive(1e-8))), warmup_steps=28).step()
    assert report["warning/saturated"] == 0.0


def test_small_scales_are_counted():
    space = make_space(first=rd.Bounded(0.2, high=0.9, scale=1e-3), second=rd.Bounded(0.1, high=0.9, scale=0.009))
    assert make_tuner(make_task(space=space), tune_scale=False).step()["warning/small_scale"] == 2.0
    assert make_tuner().step()["warning/small_scale"] == 0.0


def test_first_rmsprop_step_is_reported_as_large():
    reports = list(make_tuner(warmup_steps=STEPS, train_interval=7, hyper_lr=0.01).fit())
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
        tuner = make_tuner(method=method)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "8 × 0.05 = 0.4" in text
    assert "4" in text
    assert "\n" not in text
    assert {r["warning/short_run"] for r in tuner.fit()} == {1.0}


@pytest.mark.filterwarnings("error::ray_deltastn.RunWarning")
def test_run_long_enough_does_not_warn():
    assert make_tuner(hyper_lr=0.5).step()["warning/short_run"] == 0.0
    assert make_tuner(method="fixed", hyper_lr=1e-6).step()["warning/short_run"] == 0.0


def test_warning_points_at_the_line_that_starts_the_run():
    task = make_task()
    with pytest.warns(rd.RunWarning) as caught:
        rd.SelfTuner(task, epochs=2, batch_size=16)
    assert caught[0].filename == __file__


# --- settings that depend on the device or the data ------------------------------------------------------------------


def test_validation_minibatches_have_their_own_size():
    sizes = []

    def noted(output, target):
        if output.requires_grad:
            sizes.append(len(output))
        return F.cross_entropy(output, target)

    make_tuner(make_task(valid_loss=noted), valid_batch_size=10, warmup_steps=0, valid_interval=4).step()
    assert sizes[:4] == [10, 10, 10, 10]


def test_batch_larger_than_the_data_is_the_data():
    assert make_tuner(batch_size=1000).step()["steps"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_resume_on_a_gpu():
    assert_resumes(lambda: make_tuner(make_task("plain-dropout"), steps_per_report=5, device="cuda"), breaks=(1, 3))


def test_isolated_seeds_inside_and_leaves_no_trace_outside():
    scramble_global_generators(1)
    before = global_generators()
    with random_state.isolated(5):
        first = (random.random(), np.random.rand(), torch.rand(()).item())
    with random_state.isolated(5):
        second = (random.random(), np.random.rand(), torch.rand(()).item())
    after = global_generators()
    assert first == second
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])


class Attending(nn.Module):
    """One attention over the five features as tokens; `fused` or written out."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.queries, self.out = nn.Linear(1, 4), nn.Linear(4, 3)
        self.dropout = rd.Dropout("rate")

    def forward(self, x):
        q = self.queries(self.dropout(x)[..., None])[:, None]
        if self.fused:
            y = F.scaled_dot_product_attention(q, q, q)
        else:
            y = (q @ q.transpose(-1, -2) / 2.0).softmax(-1) @ q
        return self.out(y[:, 0].mean(1))


@pytest.mark.parametrize("fused", [True, False])
def test_attention_rules_are_entered_only_where_attention_is_called(fused):
    torch.manual_seed(0)
    task = rd.Task(
        space=rd.HyperSpace(rate=rd.Bounded(0.2, low=0.0, high=0.9)), model=Attending(fused), loss=F.cross_entropy,
        train=(torch.randn(20, 5), torch.arange(20) % 3), valid=(torch.randn(10, 5), torch.arange(10) % 3),
    )  # fmt: skip
    tuner = rd.SelfTuner(task, epochs=2, batch_size=10, warmup=0, train_interval=1)
    assert tuner.response.attends is fused
    assert all(math.isfinite(report["valid_loss"]) for report in tuner.fit())
