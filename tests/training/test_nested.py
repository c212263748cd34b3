"""Batches and outputs that are dictionaries, tuples and dataclasses train as the same numbers in one tensor do."""

import dataclasses
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import ray_deltastn as rd
from ray_deltastn.response import trees

OPTIONS = {"epochs": 4, "batch_size": 6, "lr": 0.1, "warmup": 1, "hyper_lr": 0.1, "train_interval": 2, "seed": 1}


@dataclasses.dataclass
class Output:
    """What a model of a library returns: logits, and more."""

    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    note: str = "not a tensor"


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.drop, self.out = nn.Linear(6, 8), rd.Dropout("dropout"), nn.Linear(8, 3)

    def logits(self, x):
        return self.out(self.drop(torch.relu(self.first(x))))


class Plain(Body):
    def forward(self, x):
        return self.logits(x)


class Keywords(Body):
    def forward(self, left, right, scale=None):
        y = self.logits(torch.cat([left, right], 1))
        return Output(y, hidden=y.detach().mean())


class Positional(Body):
    def forward(self, left, right):
        return self.logits(torch.cat([left, right], 1)), {"unused": [left]}


def data(count=24):
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, :3] + 0.5 * torch.randn(count, 3, generator=generator)).argmax(1)


def halves(x):
    return {"left": x[:, :2], "right": x[:, 2:]}


class Records(Dataset):
    """Dictionaries, as a tokeniser gives them."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"left": self.x[i, :2], "right": self.x[i, 2:], "labels": self.y[i]}


def task(kind):
    (x, y), (xv, yv), space = data(24), data(20), rd.HyperSpace(dropout=rd.Bounded(0.2), decay=rd.Positive(1e-3))
    parts = {
        "tensor": (Plain(), F.cross_entropy, (x, y), (xv, yv), None),
        "dictionary": (Keywords(), lambda o, y: F.cross_entropy(o.logits, y), (halves(x), y), (halves(xv), yv), None),
        "tuple": (
            Positional(),
            lambda o, y: F.cross_entropy(o[0], y["class"]),
            ((x[:, :2], x[:, 2:]), {"class": y}),
            ((xv[:, :2], xv[:, 2:]), {"class": yv}),
            None,
        ),
        "one-dictionary": (
            Keywords(),
            lambda o, batch: F.cross_entropy(o.logits, batch["labels"]),
            {**halves(x), "labels": y},
            {**halves(xv), "labels": yv},
            "labels",
        ),
        "function": (
            Plain(),
            F.cross_entropy,
            {"all": torch.cat([x, y[:, None].float()], 1)},
            {"all": torch.cat([xv, yv[:, None].float()], 1)},
            # Contiguous, since a product with other strides may round differently.
            lambda batch: (batch["all"][:, :6].contiguous(), batch["all"][:, 6].long()),
        ),
    }[kind]
    model, loss, train, valid, batch = parts
    return rd.Task(space, model, loss, train, valid, valid, penalty=rd.L2("decay"), batch=batch)


VARIANTS = {
    "whole": {},
    "share": {"response_fraction": 0.5, "antithetic": True, "perturbations": 2},
    "parts": {"sub_batches": 2},
    "paper": {"preset": "paper"},
}


def numbers(reports):
    return [
        {key: value for key, value in report.items() if "seconds" not in key and "accuracy" not in key}
        for report in reports
    ]


@pytest.mark.parametrize(
    ("method", "variant"), [("fixed", "whole"), ("stn", "whole"), *(("delta-stn", variant) for variant in VARIANTS)]
)
@pytest.mark.parametrize("kind", ["dictionary", "tuple", "one-dictionary", "function"])
def test_the_numbers_are_those_of_one_tensor(kind, method, variant):
    options = {**OPTIONS, **VARIANTS[variant]}
    expected = numbers(rd.SelfTuner(task("tensor"), method, **options).fit())
    found = numbers(rd.SelfTuner(task(kind), method, **options).fit())
    for one, other in zip(found, expected, strict=True):
        one.pop("response_size"), other.pop("response_size")  # the outputs have other parts besides
        one.pop("warning/large_response"), other.pop("warning/large_response")
        assert one == other


def test_penalties_by_implicit_differentiation_take_nested_batches():
    def losses(kind):
        made = task(kind)
        made.model.drop = nn.Identity()
        space = rd.HyperSpace(decay=rd.Positive(1e-3))
        own = rd.Task(space, made.model, made.loss, made.train, made.valid, penalty=rd.L2("decay"))
        return [report["valid_loss"] for report in rd.SelfTuner(own, "ift", **OPTIONS).fit()]

    assert losses("dictionary") == losses("tensor")


def test_a_loader_of_dictionaries_trains_and_resumes_to_the_bit():
    def tuner():
        made = task("one-dictionary")
        train, valid = Records(*data(24)), DataLoader(Records(*data(20)), 5)
        loader = DataLoader(train, 6, shuffle=True)
        again = rd.Task(
            made.space, made.model, made.loss, loader, valid, penalty=rd.L2("decay"), batch="labels"
        )  # fmt: skip
        return rd.SelfTuner(again, **OPTIONS)

    whole = numbers(tuner().fit())
    half = tuner()
    half.step()
    half.step()
    rest = tuner()
    rest.load_state_dict(half.state_dict())
    assert numbers(rest.fit()) == whole[2:]
    assert whole[-1]["valid_loss"] < whole[0]["valid_loss"]


def test_refit_and_sensitivity_take_nested_data():
    expected, found = (rd.SelfTuner(task(kind), **OPTIONS) for kind in ("tensor", "one-dictionary"))
    list(expected.fit()), list(found.fit())
    assert found.sensitivity().equals(expected.sensitivity())
    schedule = found.schedule()
    options = {"lr": 0.3, "batch_size": 6, "seed": 1}
    one, other = (rd.refit(task(kind), schedule, **options) for kind in ("tensor", "one-dictionary"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["dictionary", "one-dictionary"])
def test_captured_steps_on_nested_batches_give_the_numbers_of_eager_steps(kind):
    captured = rd.SelfTuner(task(kind), graph="on", **OPTIONS)
    assert numbers(captured.fit()) == numbers(rd.SelfTuner(task(kind), **OPTIONS).fit())
    assert captured.algorithm.captured


def test_an_unequal_number_of_examples_is_refused():
    made = task("dictionary")
    made.train[0]["left"] = made.train[0]["left"][:-1]
    with pytest.raises(ValueError, match=r"`len\(x\) == len\(y\)` must hold for 'train', got 23 and 24"):
        rd.SelfTuner(made, **OPTIONS)


def test_other_mappings_and_dataclasses_keep_their_numbers():
    @dataclasses.dataclass
    class Doubled:
        a: torch.Tensor

        def __post_init__(self):
            self.a = self.a * 2

    given = UserDict(one=torch.ones(2), two=[Doubled(torch.ones(2)), None])
    found = trees.mapped(lambda t: t, given)
    assert found["two"][0].a.tolist() == [2.0, 2.0]
    assert [t.tolist() for t in trees.tensors(given)] == [[1.0, 1.0], [2.0, 2.0]]


def test_batches_are_joined_by_name_and_never_cast():
    one, other = {"a": torch.zeros(2), "b": torch.ones(2)}, {"b": 3 * torch.ones(1), "a": 2 * torch.ones(1)}
    assert {name: t.tolist() for name, t in trees.joined(one, other).items()} == {"a": [0, 0, 2], "b": [1, 1, 3]}
    for wrong in ({"a": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.ones(2, dtype=torch.uint8)}):
        with pytest.raises(ValueError, match="two batches must have the same parts of the same types"):
            trees.joined(one, wrong)


def test_inputs_that_are_targets_too_are_copied_once():
    tuner = rd.SelfTuner(task("one-dictionary"), **OPTIONS)
    for x, y in (tuner.train.next(), next(tuner.valid.in_order())):
        assert x["left"] is y["left"]


def test_a_sum_as_loss_of_nested_tensors_is_refused():
    made = task("dictionary")
    made.loss = lambda output, y: F.cross_entropy(output.logits, y, reduction="sum")
    with pytest.raises(ValueError, match="`loss` must return a mean over the examples, got a sum"):
        rd.SelfTuner(made, **OPTIONS)


def test_augmentations_need_one_tensor():
    made = task("dictionary")
    made.augmentations = (rd.GaussianNoise(0.1),)
    with pytest.raises(TypeError, match="`augment` must have inputs that are one tensor, got dict with left, right"):
        rd.SelfTuner(made, **OPTIONS)
