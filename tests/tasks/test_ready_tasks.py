"""Ready tasks: their data and models."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import ray_deltastn as rd
from ray_deltastn.tasks import build_task, find_task
from ray_deltastn.tasks.digits import digits, digits_mlp

SPLITS = ("train", "valid", "test")


def unstandardised(splits):
    """Images in their raw grey levels 0 … 16, recovered from the smallest and the largest standardised level."""
    levels = torch.cat([x.flatten() for x, _ in splits]).unique()
    low, high = levels[0], levels[-1]
    return [(x - low) / (high - low) * 16 for x, _ in splits]


def test_digits_split_sizes_and_types():
    splits = digits()
    assert [len(x) for x, _ in splits] == [1078, 359, 360]
    for x, y in splits:
        assert x.shape == (len(y), 1, 8, 8)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert set(y.tolist()) == set(range(10))


@pytest.mark.parametrize("seed", [0, 7])
def test_digits_splits_are_a_partition_of_the_data(seed):
    data = load_digits()
    expected = sorted((*row, y) for row, y in zip(data.data.astype(int).tolist(), data.target.tolist(), strict=True))
    splits = digits(seed)
    raw = unstandardised(splits)
    found = [
        (*row, label)
        for images, (_, y) in zip(raw, splits, strict=True)
        for row, label in zip(images.round().int().flatten(1).tolist(), y.tolist(), strict=True)
    ]
    assert len(found) == len(data.target) == 1797
    assert sorted(found) == expected


@pytest.mark.parametrize("seed", [0, 7])
def test_digits_are_standardised_on_the_training_part_only(seed):
    (train, _), (valid, _), (test, _) = digits(seed)
    assert train.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert train.std().item() == pytest.approx(1.0, abs=1e-5)
    for other in (valid, test):
        assert abs(other.mean().item()) > 1e-5
        assert abs(other.std().item() - 1) > 1e-5


def test_digits_depend_on_the_seed_only():
    torch.manual_seed(1)
    first = digits(3)
    torch.manual_seed(2)
    second, other = digits(3), digits(4)
    for (x, y), (x2, y2), (x3, y3) in zip(first, second, other, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
        assert not torch.equal(x, x3)
        assert not torch.equal(y, y3)


def test_digits_do_not_change_the_global_generator():
    before = torch.get_rng_state()
    digits(3)
    assert torch.equal(torch.get_rng_state(), before)


def linear_shapes(model):
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize(("config", "width"), [({}, 256), ({"width": 32}, 32), ({"width": "48"}, 48)])
def test_digits_mlp_is_a_perceptron_of_the_given_width(config, width):
    task = digits_mlp(config)
    assert linear_shapes(task.model) == [(64, width), (width, width), (width, 10)]


def test_digits_mlp_tunes_three_dropout_rates_and_weight_decay():
    task = build_task({"task": "digits-mlp"})
    assert task.space.names == ("input_dropout", "hidden1_dropout", "hidden2_dropout", "weight_decay")
    assert [m.names for m in task.regularizers] == [("input_dropout",), ("hidden1_dropout",), ("hidden2_dropout",)]
    assert [p.names for p in task.penalties] == [("weight_decay",)]
    for name in SPLITS:
        assert len(getattr(task, name)) == 2


def test_digits_mlp_follows_the_seed_of_the_split():
    first, same, other = (digits_mlp({"split_seed": seed, "width": 8}) for seed in (5, 5, 6))
    for name in SPLITS:
        assert torch.equal(getattr(first, name)[0], getattr(same, name)[0])
        assert torch.equal(getattr(first, name)[0], digits(5)[SPLITS.index(name)][0])
        assert not torch.equal(getattr(first, name)[0], getattr(other, name)[0])


def test_digits_mlp_learns_and_every_parameter_responds():
    torch.manual_seed(0)
    task = build_task({"task": "digits-mlp", "width": 32})
    tuner = rd.SelfTuner(task, epochs=8, batch_size=64, lr=0.05, warmup=1, hyper_lr=0.02)
    assert tuner.coverage.uncovered == {}
    reports = list(tuner.fit())
    assert reports[-1]["valid_accuracy"] > 0.9
    assert reports[-1]["test_accuracy"] > 0.9
    assert reports[-1]["valid_loss"] < 0.5 * reports[0]["valid_loss"]


def test_black_box_domains_of_digits_mlp_hold_its_initial_values():
    pytest.importorskip("ray")
    space = build_task({"task": "digits-mlp"}).space
    domains = space.to_tune()
    assert tuple(domains) == space.names
    for key, domain in domains.items():
        assert domain.lower <= space.hyperparameters[key].initial <= domain.upper
        value = domain.sample()
        space.hyperparameters[key].check_value(key, float(value))


def test_tasks_are_found_by_name_import_string_and_function():
    assert find_task("digits-mlp") is digits_mlp
    assert find_task("ray_deltastn.tasks.digits:digits_mlp") is digits_mlp
    assert find_task(digits_mlp) is digits_mlp


def test_initial_values_and_scale_of_digits_mlp_are_options():
    space = digits_mlp({"initial_values": {"input_dropout": 0.4}, "perturbation_scale": 0.5}).space
    start = space.named(space.values())
    assert start["input_dropout"].item() == pytest.approx(0.4)
    assert start["hidden1_dropout"].item() == pytest.approx(0.05)
    assert space.scale.tolist() == pytest.approx([0.5] * 4)
    with pytest.raises(ValueError, match=r"`initial_values` must name hyperparameters of the task, got 'dropout'"):
        digits_mlp({"initial_values": {"dropout": 0.4}})
