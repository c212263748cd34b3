"""Channels-last order of memory changes nothing but the speed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd


def make_tuner(method="delta-stn", **settings):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 3, 8, 8, dtype=torch.float64, generator=generator)
    y = x.mean((2, 3)).argmax(1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        rd.ChannelDropout("dropout"),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).double()
    space = rd.HyperSpace(
        dropout=rd.Bounded(0.2, low=0.0, high=0.9),
        holes=rd.Integer(1, low=0, high=3),
        length=rd.Integer(2, low=0, high=6),
        decay=rd.Positive(1e-3),
    )
    task = rd.Task(
        space=space,
        model=model,
        loss=F.cross_entropy,
        train=(x, y),
        valid=(x, y),
        augment=[rd.Cutout("holes", "length")],
        penalty=[rd.L2("decay")],
    )
    given = {"epochs": 4, "batch_size": 16, "lr": 0.05, "hyper_lr": 0.05, "warmup": 1, "train_interval": 1, **settings}
    return rd.SelfTuner(task, method=method, **given)


def assert_same(reports, others):
    for one, other in zip(reports, others, strict=True):
        for name, value in one.items():
            if not name.startswith("seconds/"):
                assert other[name] == (pytest.approx(value, rel=1e-7) if isinstance(value, float) else value), name


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["fixed", "stn", "centered-stn", "delta-stn"])
def test_a_run_takes_the_same_way(method, optimizer):
    tuner = make_tuner(method, optimizer=optimizer, channels_last=True)
    seen = []
    tuner.model[4].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    assert_same(make_tuner(method, optimizer=optimizer).fit(), tuner.fit())
    order = torch.channels_last
    assert all(x.is_contiguous(memory_format=order) for x in seen)
    assert all(p.is_contiguous(memory_format=order) for p in tuner.model.parameters() if p.dim() == 4)


@pytest.mark.parametrize("orders", [(False, True), (True, False)], ids=["to", "from"])
def test_a_state_may_change_the_order(orders):
    first, second = (make_tuner(momentum=0.9, channels_last=order) for order in orders)
    for _ in range(2):
        first.step()
    second.load_state_dict(first.state_dict())
    assert_same(first.fit(), second.fit())


def test_the_option_is_true_or_false():
    with pytest.raises(ValueError, match="`channels_last` must be true or false, got 'yes'"):
        make_tuner(channels_last="yes")
