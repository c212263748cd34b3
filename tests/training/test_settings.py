"""Presets decide the options that are not given, and only those."""

from dataclasses import fields

import pytest
import torch

from ray_deltastn.methods import StepOptions
from ray_deltastn.training.settings import Settings


@pytest.mark.parametrize(
    ("given", "hyper_lr", "domains", "clip", "parts"),
    [
        ({}, "auto", "clamped", 1.0, "auto"),
        ({"preset": "recommended"}, "auto", "clamped", 1.0, "auto"),
        ({"preset": "paper"}, 0.01, "open", None, 1),
        ({"preset": "paper", "domains": "clamped", "hyper_lr": "auto"}, "auto", "clamped", None, 1),
        ({"hyper_lr": 0.02, "response_clip": 3, "sub_batches": 4}, 0.02, "clamped", 3.0, 4),
        ({"hyper_lr": None, "domains": None}, "auto", "clamped", 1.0, "auto"),  # None means not given
        ({"method": "stn"}, "auto", "clamped", 1.0, 1),  # its Θ is not trained apart from w₀
    ],
)
def test_preset_decides_what_is_not_given(given, hyper_lr, domains, clip, parts):
    found = Settings(**given)
    assert (found.hyper_lr, found.domains, found.response_clip, found.sub_batches) == (hyper_lr, domains, clip, parts)


@pytest.mark.parametrize("option", ["perturbations", "sub_batches"])
def test_only_a_response_trained_apart_takes_more_passes(option):
    assert getattr(Settings(**{option: 2}), option) == 2
    with pytest.raises(ValueError, match=f"`{option}` needs a method that trains Θ apart from w₀, got 2 with 'stn'"):
        Settings(method="stn", **{option: 2})


@pytest.mark.parametrize("method", ["stn", "centered-stn", "delta-stn"])
def test_paper_adds_nothing_to_the_algorithms_as_printed(method):
    # The defaults of `StepOptions` are the steps that the tests of the methods compare with their oracles.
    found, printed = Settings(preset="paper", method=method), StepOptions()
    for field in fields(StepOptions):
        assert getattr(found, field.name) == getattr(printed, field.name), field.name
    assert (found.domains, found.hyper_lr, found.hyper_decay, found.warmup) == ("open", 0.01, 1.0, 5.0)
    assert found.response_rate == found.lr
    assert {found.hyper_rate(steps) * found.hyper_share(0.9) for steps in (1, 10_000)} == {0.01}


def test_an_unperturbed_hyper_step_cannot_tune_the_perturbation():
    assert Settings(hyper_pass="unperturbed", tune_scale=False).hyper_pass == "unperturbed"
    with pytest.raises(ValueError, match=r"`hyper_pass: unperturbed` .* `tune_scale` must be false, got true"):
        Settings(hyper_pass="unperturbed")


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
    with pytest.raises(ValueError, match="`preset` must be one of recommended, paper, got 'quick'"):
        Settings(preset="quick")
    with pytest.raises(ValueError, match="got 'fast'; 'recommended' has taken its place"):
        Settings(preset="fast")


@pytest.mark.parametrize(
    ("given", "hyper_steps", "rate"),
    [
        ({"preset": "paper"}, 250, 0.01),
        ({"hyper_decay": 1.0}, 1000, 0.012),  # three times across a range of 4
        ({"hyper_decay": 1.0}, 100_000, 0.00012),
        ({}, 4000, 0.00724927),  # the rate falls to a tenth, and its mean is 0.413835 of the first
        ({}, 250, 0.1),
        ({}, 0, 0.1),
        ({"hyper_lr": 0.02}, 250, 0.02),
        ({"preset": "paper", "hyper_lr": "auto"}, 1600, 0.0075),
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
        ({"warmup": "auto", "epochs": 24}, 66, 792),  # half the run
        ({"warmup": "auto", "epochs": 300}, 66, 2000),
        ({"warmup": "auto", "epochs": 300}, 500, 2500),  # five epochs
        ({"epochs": 300, "warmup": 0}, 500, 0),
        ({"warmup": "auto", "epochs": 300, "warmup_steps": 7}, 500, 7),
    ],
)
def test_warm_up_fits_the_run_where_that_is_asked_for(given, steps_per_epoch, steps):
    assert Settings(**given).warmup_train_steps(steps_per_epoch) == steps


def test_warm_up_is_a_number_or_auto():
    with pytest.raises(ValueError, match="`warmup` must be a number or 'auto', got 'long'"):
        Settings(warmup="long")
    with pytest.raises(ValueError, match="`warmup >= 0` must hold, got warmup=-1"):
        Settings(warmup=-1)
