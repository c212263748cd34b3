"""Networks of timm train as they are, and their responses are exact."""

import pytest

from tests.models.checked import cases, check, entries

TIMM = entries("timm_models", "TIMM", "timm")
#: Least share of the weights that respond.
FLOORS = {"ViT": 0.94, "Swin": 0.98, "MobileViT": 0.97, "GhostNet": 0.94, "NFNet": 0.02}


@pytest.mark.parametrize(("entry", "floor"), cases(TIMM, FLOORS))
def test_a_network_trains_and_its_response_is_exact(entry, floor):
    check(entry, floor)
