"""How the objects that a user holds print themselves."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ray_deltastn as rd
from tests.tune import tiny


def test_a_space_shows_the_current_values_and_bounds():
    space = rd.HyperSpace(rate=rd.Bounded(0.25, low=0.0, high=0.5), decay=rd.Positive(1e-3), shift=rd.Unbounded(2.0))
    assert repr(space).splitlines() == [
        "HyperSpace, clamped maps",
        "  rate   Bounded 0.25 in [0, 0.5], σ 0.5",
        "  decay  Positive 0.001 above 0, σ 1",
        "  shift  Unbounded 2, σ 1",
    ]
    with torch.no_grad():
        space.lam[0] = 2.0
    assert "rate   Bounded 0.5 in" in repr(space)
    assert "open maps" in repr(space.use("open") or space)


def test_a_task_shows_what_it_is_made_of_and_none_of_its_data():
    assert repr(tiny.build({})).splitlines() == [
        "Task",
        "  model: Sequential, 83 trainable weights",
        "  hyperparameters: dropout, decay",
        "  examples: 64 train, 16 valid, 16 test",
        "  loss: loss",
        "  penalty: L2(decay)",
    ]


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


def test_a_task_counts_examples_of_data_sets_and_loaders_where_it_can():
    data = TensorDataset(torch.zeros(12, 3), torch.zeros(12))
    task = rd.Task(
        space=rd.HyperSpace(noise=rd.Positive(0.1), rate=rd.Bounded(0.1, low=0.0, high=0.5)),
        model=nn.Sequential(rd.Dropout("rate"), nn.Linear(3, 1)),
        loss=F.mse_loss,
        train=DataLoader(data, batch_size=4),
        valid=({"a": torch.zeros(5, 3)}, torch.zeros(5)),
        test=Endless(),
        augment=rd.GaussianNoise("noise"),
        metrics={"mine": F.l1_loss},
    )
    lines = repr(task).splitlines()
    assert "  examples: 12 train, 5 valid, an unknown number of test" in lines
    assert "  loss: mse_loss" in lines
    assert lines[-2:] == ["  augment: GaussianNoise(noise)", "  metrics: mine"]


def test_a_tuner_shows_how_far_it_is():
    tuner = rd.SelfTuner(tiny.build({}), epochs=2, batch_size=16, warmup=1)
    head, values, response = repr(tuner).splitlines()
    assert head == "SelfTuner: delta-stn on cpu, epoch 0 of 2"
    assert values == "  dropout 0.1, decay 0.001"
    assert response == f"  {tuner.coverage.headline}"
    report = tuner.step()
    assert repr(tuner).startswith(
        f"SelfTuner: delta-stn on cpu, epoch 1 of 2, best valid loss {report['valid_loss']:.4g}\n"
    )
    list(tuner.fit())
    assert repr(tuner).splitlines()[0].endswith(f", {tuner.stop_reason}")
    fixed = rd.SelfTuner(tiny.build({}), "fixed", epochs=1)
    assert len(repr(fixed).splitlines()) == 2  # it has no response


def test_a_coverage_has_one_line_per_reason():
    bags = (nn.EmbeddingBag(1, size, mode="max") for size in (1, 4))
    model = nn.Sequential(nn.Linear(2, 3), *bags, nn.Linear(3, 1).requires_grad_(False))
    coverage = rd.Response(model, 1).coverage
    assert repr(coverage).splitlines() == [
        f"Coverage: {coverage.headline}",
        '  without response: 1.weight and 1 more (5 weights): `mode="max"` is not linear in the weight',
        "  without response: 3.weight and 1 more (0 weights): frozen (requires_grad=False)",
    ]
    assert len(str(coverage).splitlines()) == 5  # all names
