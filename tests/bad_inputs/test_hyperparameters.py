"""Mistakes in hyperparameters and tasks show at once, in one line with the rule, the value got and its name."""

import math

import pytest
import torch

import ray_deltastn as rd
from ray_deltastn.tasks import build_task, find_task
from tests.bad_inputs.made import assert_refused, build_nothing, model, space, task, tuner


def cutout(name):
    return rd.Cutout(name, name)


SPACES = {
    "name-with-a-dot": (
        lambda: space(**{"layer1.drop": rd.Bounded(0.1)}),
        ValueError,
        ["must have no '.', '/' or space", "got 'layer1.drop'; use 'layer1_drop'"],
    ),
    "name-with-a-slash": (lambda: space(**{"a/b": rd.Bounded(0.1)}), ValueError, ["got 'a/b'; use 'a_b'"]),
    "name-with-a-space": (lambda: space(**{"a b": rd.Bounded(0.1)}), ValueError, ["got 'a b'; use 'a_b'"]),
    "empty-name": (lambda: space(**{"": rd.Bounded(0.1)}), ValueError, ["got ''"]),
    "initial-on-lower-bound-of-the-sigmoid": (
        lambda: space(rate=rd.Bounded(0.0, low=0.0, high=0.9, map="sigmoid")),
        ValueError,
        ["`low < initial < high`", "low=0.0", "initial=0.0", "high=0.9", "'rate'", "(sigmoid) does not reach 0.0"],
    ),
    "initial-on-upper-bound-of-the-sigmoid": (
        lambda: space(rate=rd.Bounded(0.9, low=0.0, high=0.9, map="sigmoid")),
        ValueError,
        ["`low < initial < high`", "initial=0.9", "'rate'", "(sigmoid) does not reach 0.9"],
    ),
    "initial-on-bound-with-open-maps": (
        lambda: space(rate=rd.Bounded(0.0, low=0.0, high=0.9)).use("open"),
        ValueError,
        ["`low < initial < high`", "initial=0.0", "'rate'", "(sigmoid) does not reach 0.0"],
    ),
    "initial-on-bound-with-the-preset-of-the-paper": (
        lambda: tuner(changes={"space": space(rate=rd.Bounded(0.9, low=0.0, high=0.9))}, preset="paper"),
        ValueError,
        ["`low < initial < high`", "initial=0.9", "'rate'", "(sigmoid) does not reach 0.9"],
    ),
    "initial-outside": (
        lambda: space(rate=rd.Bounded(1.5, low=0.0, high=0.9)),
        ValueError,
        ["`low <= initial <= high`", "initial=1.5", "high=0.9", "'rate'"],
    ),
    "initial-outside-of-the-sigmoid": (
        lambda: space(rate=rd.Bounded(1.5, low=0.0, high=0.9, map="sigmoid")),
        ValueError,
        ["`low < initial < high`", "initial=1.5", "high=0.9", "'rate'"],
    ),
    "initial-outside-of-the-search-range": (
        lambda: space(decay=rd.Positive(1.0, search=(1e-5, 1e-1))),
        ValueError,
        ["`search[0] <= initial <= search[1]`", "initial=1.0", "search=(1e-05, 0.1)", "'decay'"],
    ),
    "map-unknown": (
        lambda: space(rate=rd.Bounded(0.2, map="logit")),
        ValueError,
        ["`map` must be one of line, sigmoid", "'logit'", "'rate'"],
    ),
    "map-of-another-set": (
        lambda: space(holes=rd.Integer(1, low=0, high=4, map="clamped")),
        ValueError,
        ["`map` must be one of line, sigmoid", "'clamped'", "'holes'"],
    ),
    "initial-not-positive": (
        lambda: space(decay=rd.Positive(0.0)),
        ValueError,
        ["`low < initial < high`", "initial=0.0", "'decay'"],
    ),
    "initial-nan": (lambda: space(rate=rd.Bounded(math.nan)), ValueError, ["`initial`", "finite", "nan", "'rate'"]),
    "initial-infinite": (lambda: space(decay=rd.Positive(math.inf)), ValueError, ["`initial`", "inf", "'decay'"]),
    "initial-text": (lambda: space(rate=rd.Bounded("0.5")), ValueError, ["`initial`", "'0.5'", "'rate'"]),
    "initial-bool": (lambda: space(rate=rd.Unbounded(True)), ValueError, ["`initial`", "True", "'rate'"]),
    "bounds-nan": (lambda: space(rate=rd.Bounded(0.5, low=math.nan)), ValueError, ["low", "nan", "'rate'"]),
    "bounds-infinite": (
        lambda: space(rate=rd.Bounded(0.5, low=0.0, high=math.inf)),
        ValueError,
        ["high", "inf", "'rate'"],
    ),
    "bounds-swapped": (
        lambda: space(rate=rd.Bounded(0.5, low=0.9, high=0.0)),
        ValueError,
        ["`low < high`", "low=0.9", "high=0.0", "'rate'"],
    ),
    "bounds-equal": (
        lambda: space(rate=rd.Bounded(0.5, low=0.5, high=0.5)),
        ValueError,
        ["`low < high`", "low=0.5", "high=0.5", "'rate'"],
    ),
    "scale-zero": (lambda: space(rate=rd.Bounded(0.2, scale=0)), ValueError, ["`scale > 0`", "scale=0", "'rate'"]),
    "scale-negative": (lambda: space(rate=rd.Bounded(0.2, scale=-1.0)), ValueError, ["`scale > 0`", "-1.0", "'rate'"]),
    "scale-nan": (lambda: space(rate=rd.Bounded(0.2, scale=math.nan)), ValueError, ["`scale`", "nan", "'rate'"]),
    "per-unknown": (
        lambda: space(rate=rd.Bounded(0.2, per="minibatch")),
        ValueError,
        ["`per`", "'example' or 'batch'", "'minibatch'", "'rate'"],
    ),
    "search-outside": (
        lambda: space(rate=rd.Bounded(0.2, high=0.9, search=(0.1, 1.5))),
        ValueError,
        ["search[1] <= high", "(0.1, 1.5)", "high=0.9", "'rate'"],
    ),
    "search-not-a-pair": (lambda: space(rate=rd.Bounded(0.2, search=0.5)), ValueError, ["`search", "0.5", "'rate'"]),
    "integer-bound-broken": (
        lambda: space(holes=rd.Integer(1, low=0, high=2.5)),
        ValueError,
        ["`high` must be a whole number", "high=2.5", "'holes'"],
    ),
    "set-of-maps-unknown": (
        lambda: space().use("line"),
        ValueError,
        ["`domains` must be one of clamped, open", "'line'"],
    ),
    "no-hyperparameter": (lambda: rd.HyperSpace(), ValueError, ["`HyperSpace`", "at least one", "none"]),
    "not-a-hyperparameter": (lambda: space(rate=0.5), TypeError, ["`rate`", "hyperparameter", "0.5"]),
    "class-not-a-hyperparameter": (lambda: space(rate=rd.Bounded), TypeError, ["`rate`", "hyperparameter", "Bounded"]),
    "open-domain-to-tune": (
        lambda: space(shift=rd.Unbounded(0.0)).to_tune(),
        ValueError,
        ["`search=(low, high)`", "inf", "'shift'"],
    ),
}


@pytest.mark.parametrize("case", SPACES)
def test_bad_hyperparameter_is_refused_in_one_line(case):
    assert_refused(*SPACES[case])


TASKS = {
    "space-is-no-space": (
        lambda: task(space={"rate": 0.5}),
        TypeError,
        ["`space` must be a HyperSpace", "dict"],
    ),
    "model-is-no-module": (lambda: task(model=lambda x: x), TypeError, ["`model` must be an nn.Module", "function"]),
    "unknown-name-in-the-model": (
        lambda: task(model=model(rd.Dropout("rat"))),
        ValueError,
        ["`Dropout`", "unknown hyperparameter", "'rat'", "rate"],
    ),
    "unknown-name-in-augment": (
        lambda: task(augment=cutout("holes")),
        ValueError,
        ["`Cutout`", "unknown hyperparameter", "'holes'", "rate"],
    ),
    "unknown-name-in-penalty": (
        lambda: task(penalty=rd.L2("decay")),
        ValueError,
        ["`L2`", "unknown hyperparameter", "'decay'", "rate"],
    ),
    "unknown-name-in-valid-penalty": (
        lambda: task(valid_penalty=[rd.L2("decay")]),
        ValueError,
        ["`L2`", "unknown hyperparameter", "'decay'"],
    ),
    "name-is-no-name": (lambda: rd.Dropout(0.5), TypeError, ["`name`", "0.5"]),
    "hyperparameter-nobody-uses": (
        lambda: task(space=space(rate=rd.Bounded(0.2), decay=rd.Positive(1e-3))),
        ValueError,
        ["used by a regulariser", "'decay'", "none"],
    ),
    "loss-not-callable": (lambda: task(loss="cross_entropy"), TypeError, ["`loss` must be callable", "cross_entropy"]),
    "metric-is-a-class": (
        lambda: task(metrics={"ppl": rd.Perplexity}),
        TypeError,
        ["`metrics['ppl']` must be `Perplexity()`", "class"],
    ),
    "metric-not-callable": (lambda: task(metrics={"top": 5}), TypeError, ["`top` must be callable", "5"]),
    "augment-not-an-augmentation": (
        lambda: task(augment=torch.nn.Identity),
        TypeError,
        ["`augment`", "`names`", "Identity"],
    ),
    "penalty-not-callable": (lambda: task(penalty=0.01), TypeError, ["`penalty` must be callable", "0.01"]),
    "penalty-divided-by-zero": (
        lambda: rd.L2("decay", divide_by=0),
        ValueError,
        ["`divide_by > 0`", "divide_by=0", "'decay'"],
    ),
    "task-is-no-task": (lambda: rd.SelfTuner(model()), TypeError, ["`task` must be a Task", "Sequential"]),
}


@pytest.mark.parametrize("case", TASKS)
def test_bad_task_is_refused_in_one_line(case):
    assert_refused(*TASKS[case])


NAMES = {
    "unknown-task": (
        lambda: find_task("digit-mlp"),
        ValueError,
        ["`task` must be one of", "'digit-mlp'", "did you mean 'digits-mlp'"],
    ),
    "task-of-a-wrong-type": (lambda: find_task(5), TypeError, ["`task` must be", "5"]),
    "missing-module": (
        lambda: find_task("no_such_package.tasks:build"),
        ValueError,
        ["`task`", "'module:function'", "no_such_package"],
    ),
    "missing-attribute": (
        lambda: find_task("ray_deltastn.tasks:bild"),
        ValueError,
        ["`task`", "'ray_deltastn.tasks:bild'", "bild"],
    ),
    "nothing-callable": (
        lambda: find_task("tests.bad_inputs.made:NOT_CALLABLE"),
        TypeError,
        ["`task` must name a callable", "NOT_CALLABLE", "int"],
    ),
    "nothing-after-the-colon": (
        lambda: find_task("ray_deltastn.tasks:"),
        (ValueError, TypeError),
        ["`task`", "'ray_deltastn.tasks:'"],
    ),
    "nothing-before-the-colon": (lambda: find_task(":build"), (ValueError, TypeError), ["`task`", "':build'"]),
    "config-without-task": (lambda: build_task({"lr": 0.1}), ValueError, ["`config` must hold 'task'", "'lr'"]),
    "build-returns-nothing": (
        lambda: build_task({"task": build_nothing}),
        TypeError,
        ["`task` must build a Task", "NoneType", "build_nothing"],
    ),
    "ready-task-with-a-bad-width": (
        lambda: build_task({"task": "digits-mlp", "width": 0}),
        ValueError,
        ["`width", "0"],
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_bad_name_of_a_task_is_refused_in_one_line(case):
    assert_refused(*NAMES[case])
