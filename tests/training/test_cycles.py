"""Which steps a run takes, and what each of them moves."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from tests.training.runs import METHODS, STEPS, TUNING, examples, make_task, make_tuner, reports_of, tensors_of


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
    tuner = make_tuner(warmup_steps=warmup_steps, train_interval=5, valid_interval=2, hyper_lr=0.01, hyper_decay=1.0)
    assert len(count_hyper_steps(tuner)) * 0.01 == pytest.approx(tuner.health.reach)


def test_scale_keeps_its_value_unless_tuned():
    tuner = make_tuner(tune_scale=False)
    reports = reports_of(tuner)
    assert reports[-1]["hyperparameters/first"] != pytest.approx(0.2, abs=1e-4)
    initial = {"first": 0.5, "second": 0.5, "decay": 1.0}
    assert all(r[f"scale/{name}"] == pytest.approx(initial[name]) for r in reports for name in tuner.space.names)
    assert len({r["scale/first"] for r in reports}) == 1


@pytest.mark.parametrize("method", TUNING)
def test_large_entropy_weight_widens_the_perturbation(method):
    reports = reports_of(make_tuner(method=method, entropy_weight=100.0, preset="paper"))
    for name in ("first", "second", "decay"):
        scales = [report[f"scale/{name}"] for report in reports]
        assert scales == sorted(scales)
        assert scales[-1] > 1.2


@pytest.mark.parametrize("method", TUNING)
def test_own_learning_rate_of_the_scale_counts(method):
    # The first RMSprop step is ten times its learning rate, whatever the gradient.
    options = {"warmup_steps": 0, "steps_per_report": 3, "hyper_lr": 0.01, "scale_lr": 0.001}
    # `recommended` limits it to two.
    for preset, times in (("paper", 10), ("recommended", 2)):
        tuner = make_tuner(method=method, preset=preset, **options)
        raw, lam = tuner.space.raw_scale.detach().clone(), tuner.space.lam.detach().clone()
        tuner.step()
        assert (tuner.space.lam.detach() - lam).abs().max().item() == pytest.approx(0.01 * times, rel=1e-2)
        assert (tuner.space.raw_scale.detach() - raw).abs().max().item() == pytest.approx(0.001 * times, rel=1e-2)


def test_learning_rates_of_hyperparameters_fall_in_seven_equal_ratios():
    tuner = make_tuner(epochs=40, warmup_steps=7, hyper_lr=0.05, scale_lr=0.02, hyper_decay=0.1, train_interval=1)
    rates = []
    hyper_step = tuner.algorithm.hyper_step

    def noted(x, y):
        rates.append([group["lr"] for group in tuner.optimizers.hyper.param_groups])
        return hyper_step(x, y)

    tuner.algorithm.hyper_step = noted
    for _ in tuner.fit():
        pass
    first = list(dict.fromkeys(rate for rate, _ in rates))
    assert first == pytest.approx([0.05 * 0.1 ** (stage / 7) for stage in range(8)])
    assert [other / rate for rate, other in rates] == pytest.approx([0.4] * len(rates))
    counts = [sum(rate == one for one, _ in rates) for rate in first]
    assert max(counts) - min(counts) <= 2
    assert sum(rate for rate, _ in rates) == pytest.approx(tuner.health.reach, rel=0.02)


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


@pytest.mark.parametrize("method", METHODS)
def test_clipped_gradient_bounds_the_step(method):
    def steep(output, target):
        return 1e4 * F.cross_entropy(output, target)

    options = {"lr": 0.01, "momentum": 0.0, "clip_grad": 0.5, "steps_per_report": 1, "preset": "paper"}
    tuner = make_tuner(make_task(loss=steep), method, **options)
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
    tuner = make_tuner(task, method, response_fraction=fraction, steps_per_report=3, warmup_steps=10)
    sizes.clear()  # the loss has been tried out
    tuner.step()
    assert sizes == [16, rows] * 3


def test_validation_minibatches_have_their_own_size():
    sizes = []

    def noted(output, target):
        if output.requires_grad:
            sizes.append(len(output))
        return F.cross_entropy(output, target)

    tuner = make_tuner(make_task(valid_loss=noted), valid_batch_size=10, warmup_steps=0, valid_interval=4)
    sizes.clear()  # the loss has been tried out
    tuner.step()
    assert sizes[:4] == [10, 10, 10, 10]


def test_batch_larger_than_the_data_is_the_data():
    assert make_tuner(batch_size=1000).step()["steps"] == 1


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
        space=rd.HyperSpace(rate=rd.Bounded(0.2, low=0.0, high=0.9)),
        model=Attending(fused),
        loss=F.cross_entropy,
        train=(torch.randn(20, 5), torch.arange(20) % 3),
        valid=(torch.randn(10, 5), torch.arange(10) % 3),
    )
    tuner = rd.SelfTuner(task, epochs=2, batch_size=10, warmup=0, train_interval=1)
    assert tuner.response.attends is fused
    assert all(math.isfinite(report["valid_loss"]) for report in tuner.fit())
