"""A state of another run, or of none, is refused in one line and changes nothing."""

import pytest
from torch import nn

import ray_deltastn as rd
from tests.bad_inputs.made import assert_refused, more_hyperparameters, other_model, space, tuner


def load(saved, own):
    own.load_state_dict(saved.state_dict())


def twice(tied):
    """A run whose model has two equal layers, of which the second may have the weight of the first."""
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), rd.Dropout("rate"), nn.Linear(4, 4))
    if tied:
        layers[3].weight = layers[0].weight
    return tuner(changes={"model": layers})


def other_space():
    return tuner(changes={"space": space(rate=rd.Bounded(0.2, low=0.0, high=0.8))})


STATES = {
    "state-of-another-domain": (
        lambda: load(other_space(), tuner()),
        ValueError,
        ["`state`", "same space", "'rate'", "0.8", "0.9"],
    ),
    "state-of-another-space": (lambda: load(more_hyperparameters(), tuner()), ValueError, ["same space", "'decay'"]),
    "state-of-another-method": (
        lambda: load(tuner("stn"), tuner()),
        ValueError,
        ["`state`", "same method", "'stn'", "'delta-stn'"],
    ),
    "state-of-another-model": (
        lambda: load(other_model(), tuner()),
        ValueError,
        ["`state`", "same model", "'0.bias'", "'6'", "'5'"],
    ),
    "state-of-a-tied-model": (
        lambda: load(twice(tied=True), twice(tied=False)),
        ValueError,
        ["`state`", "same model", "'the tensor of 0.weight'", "'3.weight'", "'4×4'"],
    ),
    "state-of-an-untied-model": (
        lambda: load(twice(tied=False), twice(tied=True)),
        ValueError,
        ["`state`", "same model", "'4×4'", "'3.weight'", "'the tensor of 0.weight'"],
    ),
    "state-of-another-optimizer": (
        lambda: load(tuner(optimizer="adam"), tuner()),
        ValueError,
        ["`state`", "same optimizer", "'adam'", "'sgd'"],
    ),
    "state-of-another-hyper-optimizer": (
        lambda: load(tuner(hyper_optimizer="adam"), tuner()),
        ValueError,
        ["`state`", "same hyper_optimizer", "'adam'", "'rmsprop'"],
    ),
    "state-with-another-choice-of-scale": (
        lambda: load(tuner(tune_scale=False), tuner()),
        ValueError,
        ["`state`", "same tune_scale", "False", "True"],
    ),
    "state-that-is-none": (lambda: tuner().load_state_dict({"a": 1}), ValueError, ["`state`", "SelfTuner", "dict"]),
    "state-that-is-a-list": (lambda: tuner().load_state_dict([1]), ValueError, ["`state`", "SelfTuner", "list"]),
    "state-with-parts-missing": (
        lambda: tuner().load_state_dict({"identity": tuner().state_dict()["identity"]}),
        ValueError,
        ["`state`", "'space'"],
    ),
}


@pytest.mark.parametrize("case", STATES)
def test_bad_state_is_refused_in_one_line(case):
    assert_refused(*STATES[case])


def test_refused_state_changes_nothing():
    for other in (
        other_space,
        more_hyperparameters,
        other_model,
        lambda: tuner("stn"),
        lambda: tuner(optimizer="adam"),
    ):
        state = other().state_dict()
        own, undisturbed = tuner(), tuner()
        with pytest.raises(ValueError, match="`state`"):
            own.load_state_dict(state)
        assert own.step()["valid_loss"] == undisturbed.step()["valid_loss"]
