"""Mistakes in options show at once, in one line with the rule, the value got and its name."""

import math

import pytest
from torch import nn

import ray_deltastn as rd
from ray_deltastn.training.settings import Settings
from tests.bad_inputs.made import OneWay, assert_refused, model, task, tuner

SETTINGS = {
    "unknown-method": (
        lambda: tuner("delta-snt"),
        ValueError,
        ["`method` must be one of", "'delta-snt'", "did you mean 'delta-stn'"],
    ),
    "method-of-a-wrong-type": (lambda: tuner(["delta-stn"]), ValueError, ["`method` must be one of", "['delta-stn']"]),
    "unknown-option": (
        lambda: tuner(train_intervals=3),
        ValueError,
        ["options", "'train_intervals'", "did you mean 'train_interval'"],
    ),
    "unknown-option-like-no-other": (lambda: tuner(colour="red"), ValueError, ["options", "'colour'"]),
    "zero-epochs": (lambda: tuner(epochs=0), ValueError, ["`epochs >= 1`", "epochs=0"]),
    "broken-epochs": (lambda: tuner(epochs=1.5), ValueError, ["`epochs >= 1`", "whole", "epochs=1.5"]),
    "negative-train-interval": (lambda: tuner(train_interval=-5), ValueError, ["`train_interval >= 1`", "-5"]),
    "zero-valid-interval": (lambda: tuner(valid_interval=0), ValueError, ["`valid_interval >= 1`", "valid_interval=0"]),
    "zero-batch-size": (lambda: tuner(batch_size=0), ValueError, ["`batch_size >= 1`", "batch_size=0"]),
    "negative-warmup": (lambda: tuner(warmup=-1), ValueError, ["`warmup >= 0`", "warmup=-1"]),
    "negative-warmup-steps": (lambda: tuner(warmup_steps=-1), ValueError, ["`warmup_steps >= 0`", "-1"]),
    "zero-patience": (lambda: tuner(patience=0), ValueError, ["`patience >= 1`", "patience=0"]),
    "zero-steps-per-report": (lambda: tuner(steps_per_report=0), ValueError, ["`steps_per_report >= 1`", "=0"]),
    "lr-nan": (lambda: tuner(lr=math.nan), ValueError, ["`lr > 0`", "lr=nan"]),
    "lr-negative": (lambda: tuner(lr=-0.1), ValueError, ["`lr > 0`", "lr=-0.1"]),
    "lr-text": (lambda: tuner(lr="0.1"), ValueError, ["`lr > 0`", "lr='0.1'"]),
    "hyper-lr-infinite": (lambda: tuner(hyper_lr=math.inf), ValueError, ["`hyper_lr > 0`", "hyper_lr=inf"]),
    "scale-lr-zero": (lambda: tuner(scale_lr=0.0), ValueError, ["`scale_lr > 0`", "scale_lr=0.0"]),
    "clip-grad-zero": (lambda: tuner(clip_grad=0.0), ValueError, ["`clip_grad > 0`", "clip_grad=0.0"]),
    "entropy-weight-negative": (lambda: tuner(entropy_weight=-1e-3), ValueError, ["`entropy_weight >= 0`", "-0.001"]),
    "momentum-one": (lambda: tuner(momentum=1.0), ValueError, ["`momentum >= 0 and momentum < 1`", "momentum=1.0"]),
    "response-fraction-zero": (
        lambda: tuner(response_fraction=0),
        ValueError,
        ["response_fraction > 0", "response_fraction <= 1", "response_fraction=0"],
    ),
    "response-fraction-above-one": (
        lambda: tuner(response_fraction=1.5),
        ValueError,
        ["response_fraction <= 1", "response_fraction=1.5"],
    ),
    "response-fraction-with-stn": (
        lambda: tuner("stn", response_fraction=0.5),
        ValueError,
        ["`response_fraction`", "0.5", "'stn'"],
    ),
    "antithetic-with-stn": (
        lambda: tuner("stn", antithetic=True),
        ValueError,
        ["`antithetic` needs a method that trains Θ apart from w₀", "True", "'stn'"],
    ),
    "antithetic-number": (lambda: tuner(antithetic=2), ValueError, ["`antithetic` must be true or false", "2"]),
    "seed-negative": (lambda: tuner(seed=-1), ValueError, ["`seed >= 0`", "seed=-1"]),
    "unknown-optimizer": (
        lambda: tuner(optimizer="rmsprop"),
        ValueError,
        ["`optimizer` must be one of sgd, adam, adamw", "'rmsprop'"],
    ),
    "unknown-hyper-optimizer": (
        lambda: tuner(hyper_optimizer="sgd"),
        ValueError,
        ["`hyper_optimizer` must be one of rmsprop, adam", "'sgd'"],
    ),
    "unknown-schedule": (lambda: tuner(schedule="cosin"), ValueError, ["`schedule` must be one of", "'cosin'"]),
    "schedule-without-name": (
        lambda: tuner(schedule={"step_size": 3}),
        ValueError,
        ["`schedule` must be one of", "None"],
    ),
    "schedule-with-missing-arguments": (
        lambda: tuner(schedule="step"),
        ValueError,
        ["`schedule`", "StepLR", "step_size"],
    ),
    "schedule-with-unknown-arguments": (
        lambda: tuner(schedule={"name": "cosine", "period": 3}),
        ValueError,
        ["`schedule`", "CosineAnnealingLR", "period"],
    ),
    "schedule-with-a-bad-value": (
        lambda: tuner(schedule={"name": "plateau", "factor": 2.0}),
        ValueError,
        ["`schedule`", "ReduceLROnPlateau", "2.0"],
    ),
    "schedule-of-a-wrong-type": (lambda: tuner(schedule=5), ValueError, ["`schedule`", "5"]),
    "hyperparameters-with-delta-stn": (
        lambda: tuner(hyperparameters={"rate": 0.3}),
        ValueError,
        ["`hyperparameters`", "'fixed'", "'delta-stn'"],
    ),
    "fixed-value-outside-its-domain": (
        lambda: tuner("fixed", hyperparameters={"rate": 1.2}),
        ValueError,
        ["`low <= value <= high`", "value=1.2", "high=0.9", "'rate'"],
    ),
    "fixed-value-in-a-schedule-outside-its-domain": (
        lambda: tuner("fixed", hyperparameters={"rate": [0.1, -0.2]}),
        ValueError,
        ["`low <= value <= high`", "value=-0.2", "'rate'"],
    ),
    "fixed-value-nan": (
        lambda: tuner("fixed", hyperparameters={"rate": math.nan}),
        ValueError,
        ["`low <= value <= high`", "value=nan", "'rate'"],
    ),
    "fixed-value-text": (
        lambda: tuner("fixed", hyperparameters={"rate": "0.3"}),
        ValueError,
        ["value='0.3'", "'rate'"],
    ),
    "fixed-schedule-empty": (
        lambda: tuner("fixed", hyperparameters={"rate": []}),
        ValueError,
        ["at least one value", "none", "'rate'"],
    ),
    "fixed-unknown-name": (
        lambda: tuner("fixed", hyperparameters={"rat": 0.2}),
        ValueError,
        ["`hyperparameters`", "unknown", "'rat'", "rate"],
    ),
    "hyperparameters-of-a-wrong-type": (
        lambda: tuner("fixed", hyperparameters=0.3),
        (ValueError, TypeError),
        ["`hyperparameters`", "0.3"],
    ),
    "device-unknown": (lambda: tuner(device="gpu"), ValueError, ["`device`", "'gpu'"]),
    "settings-of-a-linearised-method-not-centred": (
        lambda: rd.Method("mine", centered=False),
        ValueError,
        ["`linearized` needs `centered` and `split`", "centered=False", "'mine'"],
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_option_is_refused_in_one_line(case):
    assert_refused(*SETTINGS[case])


def test_good_inputs_beside_the_bad_ones_are_accepted():
    assert task()
    assert tuner().step()["epoch"] == 1
    assert tuner("centered-stn", changes={"model": OneWay()}).step()["epoch"] == 1
    assert tuner("fixed", hyperparameters={"rate": [0.0, 0.9]}).step()["hyperparameters/rate"] == 0.0
    assert Settings(momentum=0, warmup=0, response_fraction=1, entropy_weight=0)
    norm = model(nn.BatchNorm1d(5), rd.Dropout("rate"))
    assert tuner(changes={"model": norm}, batch_size=11).step()["epoch"] == 1
