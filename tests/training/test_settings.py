"""Presets decide the options that are not given, and only those."""

import pytest
import torch

from ray_deltastn.training.settings import Settings


@pytest.mark.parametrize(
    ("given", "fraction"),
    [
        ({}, 1.0),
        ({"preset": "fast"}, 0.25),
        ({"preset": "fast", "response_fraction": 0.5}, 0.5),
        ({"preset": "fast", "response_fraction": 1}, 1),
        ({"preset": "fast", "method": "centered-stn"}, 0.25),
        ({"preset": "fast", "method": "stn"}, 1.0),
        ({"preset": "fast", "method": "fixed"}, 1.0),
    ],
)
def test_preset_decides_what_is_not_given(given, fraction):
    assert Settings(**given).response_fraction == fraction


@pytest.mark.parametrize(
    ("given", "antithetic"),
    [
        ({}, False),
        ({"antithetic": True}, True),
        ({"preset": "fast"}, True),
        ({"preset": "fast", "antithetic": False}, False),
        ({"preset": "fast", "method": "stn"}, False),
        ({"preset": "fast", "method": "fixed"}, False),
    ],
)
def test_preset_decides_whether_the_response_is_trained_on_pairs(given, antithetic):
    assert Settings(**given).antithetic is antithetic


def test_a_device_is_given_as_text_or_as_pytorchs_own():
    assert Settings(device=torch.device("cpu")).torch_device() == Settings(device="cpu").torch_device()
    assert Settings(device=torch.device("cuda", 1)).device == "cuda:1"
    for wrong in (None, True, 1.5):
        with pytest.raises(ValueError, match=f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:0', …, got {wrong}"):
            Settings(device=wrong)


def test_only_optimisers_that_a_method_has_keep_a_cpu_from_capturing():
    cpu = torch.device("cpu")
    assert Settings(method="fixed", graph="on", hyper_optimizer="adam", response_optimizer="adam").captures(cpu)
    for option in ("optimizer", "response_optimizer", "hyper_optimizer"):
        with pytest.raises(ValueError, match="adam"):
            Settings(graph="on", **{option: "adam"}).captures(cpu)


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="`preset` must be one of paper, fast, got 'quick'"):
        Settings(preset="quick")


@pytest.mark.parametrize(
    ("given", "hyper_steps", "rate"),
    [
        ({}, 250, 0.01),
        ({"preset": "fast"}, 250, 0.032),
        ({"preset": "fast"}, 100_000, 0.01),
        ({"preset": "fast"}, 0, 0.1),
        ({"preset": "fast", "hyper_lr": 0.02}, 250, 0.02),
        ({"hyper_lr": "auto"}, 400, 0.02),
    ],
)
def test_learning_rate_of_hyperparameters_fits_the_length_of_the_run_where_that_is_asked_for(given, hyper_steps, rate):
    assert Settings(**given).hyper_rate(hyper_steps) == pytest.approx(rate)


def test_learning_rate_of_hyperparameters_is_a_number_or_auto():
    with pytest.raises(ValueError, match="`hyper_lr` must be a number or 'auto', got 'fast'"):
        Settings(hyper_lr="fast")


@pytest.mark.parametrize(
    ("given", "steps_per_epoch", "steps"),
    [
        ({}, 66, 330),
        ({"warmup": 2.5}, 10, 25),
        ({"preset": "fast", "epochs": 24}, 66, 792),  # half the run
        ({"preset": "fast", "epochs": 300}, 66, 2000),
        ({"preset": "fast", "epochs": 300}, 500, 2500),  # five epochs
        ({"preset": "fast", "epochs": 300, "warmup": 0}, 500, 0),
        ({"preset": "fast", "epochs": 300, "warmup_steps": 7}, 500, 7),
    ],
)
def test_warm_up_fits_the_run_where_that_is_asked_for(given, steps_per_epoch, steps):
    assert Settings(**given).warmup_train_steps(steps_per_epoch) == steps


def test_warm_up_is_a_number_or_auto():
    with pytest.raises(ValueError, match="`warmup` must be a number or 'auto', got 'long'"):
        Settings(warmup="long")
    with pytest.raises(ValueError, match="`warmup >= 0` must hold, got warmup=-1"):
        Settings(warmup=-1)
