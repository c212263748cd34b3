"""Θ's own optimiser, and layers with sparse gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.training.optimizers import RMSPROP_MOMENTUM, _first_order

WORDS = 20


def make_task(sparse=False):
    """Words in, three classes out."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, WORDS, (64, 5), generator=generator)
    y = torch.randint(0, 3, (64,), generator=generator)
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Embedding(WORDS, 6, sparse=sparse), rd.Dropout("dropout"), nn.Flatten(), nn.Linear(30, 3)
    ).double()
    space = rd.HyperSpace(dropout=rd.Bounded(0.3, low=0.0, high=0.9))
    return rd.Task(space=space, model=model, loss=F.cross_entropy, train=(x, y), valid=(x, y))


def make_tuner(sparse=False, method="delta-stn", **settings):
    given = {"epochs": 2, "batch_size": 64, "lr": 0.05, "hyper_lr": 0.01, "warmup": 2, "momentum": 0.0, **settings}
    return rd.SelfTuner(make_task(sparse), method=method, **given)


def response_of(tuner):
    return [p.detach().clone() for p in tuner.response.parameters()]


def move(**settings):
    """(where Θ was, how far one train step moved it)."""
    tuner = make_tuner(**settings)
    before = response_of(tuner)
    tuner._train_step()
    return before, [after - b for after, b in zip(response_of(tuner), before, strict=True)]


@pytest.mark.parametrize("share", [0.1, 3.0])
def test_response_lr_scales_the_step_of_the_response_and_no_other(share):
    before, plain = move(response_optimizer="sgd")
    again, scaled = move(response_optimizer="sgd", response_lr=0.05 * share)
    for one, other in zip(before, again, strict=True):
        assert torch.equal(one, other)
    assert any(step.abs().max() > 0 for step in plain)
    for step, other in zip(plain, scaled, strict=True):  # without momentum a step is lr times the gradient
        torch.testing.assert_close(other, share * step, rtol=1e-9, atol=1e-15)
    own, usual = make_tuner(response_lr=0.05 * share), make_tuner()
    for tuner in (own, usual):
        tuner._train_step()
    for weight, other in zip(own.model.parameters(), usual.model.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_response_optimizer_moves_the_response_by_adams_first_step():
    _, steps = move(response_optimizer="adam", response_lr=0.002)
    moved = torch.cat([step.abs().flatten() for step in steps])
    assert (moved > 0).any()
    # Adam's first step is its learning rate, wherever the gradient is well above its ε of 1e-8.
    assert moved[moved > 0].median() == pytest.approx(0.002, rel=1e-3)
    assert moved.max() <= 0.002 * (1 + 1e-9)


def test_rmsprop_moves_the_response_by_averages_of_normalised_gradients():
    # v = 0.01 g² after the first step, so that the direction is 10 sign(g), and a tenth of it counts at once.
    _, steps = move(response_optimizer="rmsprop", response_lr=0.002)
    moved = torch.cat([step.abs().flatten() for step in steps])
    assert moved[moved > 0].median() == pytest.approx(0.002, rel=1e-3)
    assert moved.max() <= 0.002 * (1 + 1e-9)
    _, steps = move(response_optimizer="rmsprop")
    moved = torch.cat([step.abs().flatten() for step in steps])
    assert moved[moved > 0].median() == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "kind", "lr"),
    [
        ({}, torch.optim.RMSprop, pytest.approx(1e-4)),
        ({"optimizer": "adam", "lr": 0.3}, torch.optim.RMSprop, pytest.approx(1e-4)),
        ({"response_lr": 0.02}, torch.optim.RMSprop, pytest.approx(0.002)),
        ({"preset": "paper"}, torch.optim.SGD, 0.05),
        ({"preset": "paper", "response_lr": 0.2}, torch.optim.SGD, 0.2),
        ({"preset": "paper", "optimizer": "adam"}, torch.optim.Adam, 0.05),
        ({"method": "stn"}, torch.optim.SGD, 0.05),
        ({"method": "stn", "optimizer": "adamw"}, torch.optim.AdamW, 0.05),
        ({"method": "centered-stn"}, torch.optim.RMSprop, pytest.approx(1e-4)),
        ({"response_optimizer": "sgd"}, torch.optim.SGD, 0.05),
        ({"response_optimizer": "adamw"}, torch.optim.AdamW, 0.05),
        ({"optimizer": "adam", "response_optimizer": "sgd", "response_lr": 0.5}, torch.optim.SGD, 0.5),
    ],
)
def test_the_response_has_the_optimiser_that_was_asked_for_and_no_decay(settings, kind, lr):
    optimizer = make_tuner(weight_decay=0.1, **settings).optimizers.response
    assert isinstance(optimizer, kind)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(lr, 0.0)]


def test_a_move_by_rmsprop_is_response_lr_for_a_constant_gradient():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = _first_order(
        "rmsprop", [weight], (1 - RMSPROP_MOMENTUM) * 0.002, momentum=0.5, weight_decay=0.0, capturable=False
    )
    for _ in range(2000):
        before = weight.detach().clone()
        weight.grad = torch.tensor([1e-3, -2.0, 50.0], dtype=torch.float64)
        optimizer.step()
    torch.testing.assert_close(weight.detach() - before, -0.002 * weight.grad.sign(), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(("kind", "share"), [("sgd", 1.0), ("rmsprop", 0.1)])
def test_response_lr_keeps_its_share_of_a_rate_that_decays(kind, share):
    schedule = {"name": "step", "step_size": 1, "gamma": 0.5}
    tuner = make_tuner(response_optimizer=kind, response_lr=0.2 / share, epochs=3, schedule=schedule)
    rates = []
    for _ in tuner.fit():
        rates.append((tuner.optimizers.lr, tuner.optimizers.response.param_groups[0]["lr"]))
    assert rates == [pytest.approx((0.05 * f, 0.2 * f), rel=1e-12) for f in (0.5, 0.25, 0.125)]


# --- sparse gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fixed", "stn", "delta-stn"])
def test_a_sparse_embedding_learns_what_a_dense_one_does(method):
    last = []
    for sparse in (False, True):
        tuner = make_tuner(sparse, method, epochs=6, momentum=0.9)
        last.append((list(tuner.fit())[-1], tuner.model[0].weight.detach()))
    assert last[1][0]["valid_loss"] == pytest.approx(last[0][0]["valid_loss"], rel=1e-9)
    torch.testing.assert_close(last[1][1], last[0][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_an_optimiser_that_takes_no_sparse_gradients_is_refused_by_name(optimizer):
    with pytest.raises(ValueError, match=f"`optimizer` must be sgd for layers .* got '{optimizer}' for '0'"):
        make_tuner(sparse=True, optimizer=optimizer)
    task = make_task(sparse=True)
    task.model[0].weight.requires_grad_(False)  # frozen, it gives none
    assert rd.SelfTuner(task, epochs=1, optimizer=optimizer).optimizers.weights is not None


# --- order of memory -------------------------------------------------------------------------------------------------


class Turned(nn.Module):
    """A linear layer whose gradients come in another order of memory than its weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.float64))

    def forward(self, x):
        return F.linear(x, self.weight.t().contiguous())


def turned_task():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, dtype=torch.float64, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(rd.Dropout("dropout"), nn.Linear(6, 6), nn.ReLU(), Turned()).double()
    data = (x, x[:, :3].argmax(1))
    space = rd.HyperSpace(dropout=rd.Bounded(0.1, low=0.0, high=0.9))
    return rd.Task(space=space, model=model, loss=F.cross_entropy, train=data, valid=data)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_gradients_in_another_order_of_memory_move_the_right_weights(optimizer):
    settings = {"epochs": 5, "batch_size": 64, "lr": 0.05, "momentum": 0.9, "optimizer": optimizer}
    tuner = rd.SelfTuner(turned_task(), method="fixed", hyperparameters={"dropout": 0.0}, **settings)
    list(tuner.fit())
    task = turned_task()
    (x, y), model = task.train, task.model[1:]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    more = {"weight_decay": 0.0} if optimizer == "adamw" else {}
    plain = kind(model.parameters(), lr=0.05, foreach=False, **({"momentum": 0.9} if optimizer == "sgd" else more))
    for _ in range(5):
        plain.zero_grad()
        F.cross_entropy(model(x), y).backward()
        plain.step()
    for one, other in zip(tuner.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


class Summed(nn.Module):
    """A linear layer whose weight is a sum: autograd gives both parts the same gradient tensor."""

    def __init__(self):
        super().__init__()
        self.dropout = rd.Dropout("dropout")
        self.one, self.other = (nn.Parameter(torch.zeros(3, 6, dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        return F.linear(self.dropout(x), self.one + self.other)


def test_a_gradient_that_two_weights_share_is_clipped_once():
    task = turned_task()
    task = rd.Task(space=task.space, model=Summed(), loss=F.cross_entropy, train=task.train, valid=task.valid)
    tuner = rd.SelfTuner(task, method="fixed", epochs=1, batch_size=64, lr=1.0, momentum=0.0, clip_grad=1e-3)
    list(tuner.fit())
    moved = torch.stack([tuner.model.one, tuner.model.other]).norm().item()
    assert moved == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_tuned_decay_is_the_weight_decay_of_sgd_and_adam_and_not_of_adamw(optimizer, recwarn):
    task = turned_task()
    space = rd.HyperSpace(dropout=rd.Bounded(0.1), decay=rd.Positive(0.3))
    given = {"loss": F.cross_entropy, "train": task.train, "valid": task.valid, "penalty": rd.L2("decay")}
    tuner = rd.SelfTuner(
        rd.Task(space=space, model=task.model, **given),
        method="fixed",
        hyperparameters={"dropout": 0.0, "decay": 0.3},
        epochs=20,
        batch_size=64,
        lr=0.05,
        momentum=0.9,
        optimizer=optimizer,
    )
    warned = [str(one.message) for one in recwarn if "AdamW" in str(one.message)]
    list(tuner.fit())
    plain_task = turned_task()
    (x, y), model = plain_task.train, plain_task.model[1:]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    plain = kind(
        model.parameters(),
        lr=0.05,
        weight_decay=0.3,
        foreach=False,
        **({"momentum": 0.9} if kind is torch.optim.SGD else {}),
    )
    for _ in range(20):
        plain.zero_grad()
        F.cross_entropy(model(x), y).backward()
        plain.step()
    pairs = list(zip(tuner.model.parameters(), model.parameters(), strict=True))
    same = all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in pairs)
    assert same == (optimizer != "adamw")
    assert bool(warned) == (optimizer == "adamw")
    if warned:
        # What the warning says to do instead: the penalty in the loss.
        again = turned_task().model[1:]
        plain = torch.optim.AdamW(again.parameters(), lr=0.05, weight_decay=0.0, foreach=False)
        for _ in range(20):
            plain.zero_grad()
            (F.cross_entropy(again(x), y) + 0.15 * sum(p.square().sum() for p in again.parameters())).backward()
            plain.step()
        for one, other in zip(tuner.model.parameters(), again.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
