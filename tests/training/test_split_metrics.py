"""Metrics over a whole split: F1 is that of scikit-learn on the whole split, not the mean of its minibatches."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ray_deltastn as rd
from ray_deltastn.training.split_metrics import Collected
from tests.training.runs import examples, from_bytes, make_task, make_tuner, reports_of, to_bytes


def macro_f1(output, target):
    return f1_score(target, output.argmax(1), average="macro")


METRICS = {"each": lambda output, target: torch.tensor(macro_f1(output, target)), "f1": rd.over_split(macro_f1)}


def loaders():
    """Minibatches of 16, the last one smaller."""
    return {
        "valid": DataLoader(TensorDataset(*examples(40, 2)), batch_size=16),
        "test": DataLoader(TensorDataset(*examples(30, 3)), batch_size=16),
    }


def run(**options):
    return make_tuner(make_task(metrics=METRICS, **loaders()), **options)


def test_f1_is_that_of_the_whole_split():
    tuner = run()
    apart = []
    for report in tuner.fit():
        model = tuner.model.eval()
        for split, (x, y) in {"valid": examples(40, 2), "test": examples(30, 3)}.items():
            with torch.no_grad():
                expected = macro_f1(model(x), y)
            assert report[f"{split}_f1"] == pytest.approx(expected, abs=1e-12)
            apart.append(abs(report[f"{split}_each"] - expected))
    assert max(apart) > 1e-3  # the mean over minibatches is another number
    names = [name for name in report if name.startswith("valid_")]
    assert names == ["valid_loss", "valid_accuracy", "valid_each", "valid_f1"]


def test_a_resumed_run_reports_the_same():
    expected = reports_of(run())
    first = run()
    first.step()
    again = run()
    again.load_state_dict(from_bytes(to_bytes(first.state_dict())))
    assert reports_of(again) == expected[1:]


def test_it_can_choose_the_best_network():
    tuner = run(monitor="valid_f1", monitor_mode="max")
    reports = list(tuner.fit())
    assert tuner.best.report["valid_f1"] == max(report["valid_f1"] for report in reports)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(6, 3)

    def forward(self, x):
        return {"logits": self.out(self.drop(x)), "first": (x[:, :1], torch.tensor(2.0))}


def test_nested_outputs_are_joined_leaf_by_leaf():
    seen = []

    @rd.over_split
    def count(output, target):
        seen.append((output["logits"].shape, output["first"][0].shape, output["first"][1].shape, target["y"].shape))
        assert torch.equal(output["first"][0], examples(40, 2)[0][: len(target["y"]), :1])
        return float(len(target["y"]))

    def pair(batch):
        return batch[0], {"y": batch[1]}

    task = rd.Task(
        rd.HyperSpace(rate=rd.Bounded(0.1)),
        Nested(),
        lambda output, target: F.cross_entropy(output["logits"], target["y"]),
        train=DataLoader(TensorDataset(*examples(80, 1)), batch_size=16),
        valid=DataLoader(TensorDataset(*examples(40, 2)), batch_size=16),
        metrics={"count": count},
        batch=pair,
    )
    report = make_tuner(task, epochs=1).step()
    assert report["valid_count"] == 40.0
    assert seen[-1] == ((40, 3), (40, 1), (), (40,))


def test_a_metric_that_a_few_examples_are_too_few_for_is_tried_on_the_split():
    x, y = examples(40, 2)
    y = (torch.arange(40) >= 10).long()  # the first examples have one class

    @rd.over_split
    def auc(output, target):
        if len(set(target.tolist())) < 2:
            raise ValueError("one class only")
        return roc_auc_score(target, output[:, 1])

    task = make_task(valid=(x, y), test=None, metrics={"auc": auc})
    tuner = make_tuner(task)
    report = tuner.step()
    with torch.no_grad():
        assert report["valid_auc"] == pytest.approx(roc_auc_score(y, tuner.model.eval()(x)[:, 1]))


def test_several_numbers_are_refused_before_the_first_step():
    metrics = {"f1": rd.over_split(lambda output, target: f1_score(target, output.argmax(1), average=None))}
    with pytest.raises(ValueError, match=r"`metrics\['f1'\]` over a split must return one number, got shape \(\d,\)"):
        make_tuner(make_task(metrics=metrics))


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="`over_split` must get a function, got 'f1'"):
        rd.over_split("f1")


def test_minibatches_of_other_shapes_are_refused():
    collected = Collected()
    collected.add(torch.zeros(2, 5), torch.zeros(2))
    collected.add(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"outputs of all minibatches must have the same shapes .* \[\(5,\)\] and"):
        collected.joined()


def test_a_marked_metric_can_be_pickled_and_keeps_its_name():
    again = pickle.loads(pickle.dumps(METRICS["f1"]))
    assert again.function is macro_f1
    assert METRICS["f1"].__name__ == "macro_f1"
