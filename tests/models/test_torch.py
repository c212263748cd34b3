"""Networks of torch train as they are, and their responses are exact."""

import pytest

from benchmarks.models.torch_models import TORCH
from tests.models.checked import cases, check

#: Least share of the weights that respond.
FLOORS = {"LSTM": 0.03, "GRU": 0.04, "TransformerEncoder": 0.55, "VAE": 0.94, "U-Net": 0.83, "nanoGPT": 0.98}


@pytest.mark.parametrize(("entry", "floor"), cases(TORCH, FLOORS))
def test_a_network_trains_and_its_response_is_exact(entry, floor):
    check(entry, floor)
