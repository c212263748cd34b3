"""Networks of rtdl_revisiting_models train as they are, and their responses are exact."""

import pytest

from tests.models.checked import cases, check, entries

RTDL = entries("rtdl_models", "RTDL", "rtdl_revisiting_models")
#: Least share of the weights that respond.
FLOORS = {"FT-Transformer": 1.0, "ResNet": 1.0, "MLP": 1.0}


@pytest.mark.parametrize(("entry", "floor"), cases(RTDL, FLOORS))
def test_a_network_trains_and_its_response_is_exact(entry, floor):
    check(entry, floor)
