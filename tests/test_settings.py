"""Presets decide the options that are not given, and only those."""

import pytest

from ray_deltastn.settings import Settings


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


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="`preset` must be one of paper, fast, got 'quick'"):
        Settings(preset="quick")
