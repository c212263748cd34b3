"""Networks of torch train as they are, and their responses are exact."""

import pytest

from benchmarks.models.torch_models import TORCH
from tests.models.checked import cases, check

#: Least share of the weights that respond.
FLOORS = {"LSTM": 1.0, "GRU": 1.0, "TransformerEncoder": 1.0, "VAE": 1.0, "U-Net": 1.0, "nanoGPT": 0.98}


@pytest.mark.parametrize(("entry", "floor"), cases(TORCH, FLOORS))
def test_a_network_trains_and_its_response_is_exact(entry, floor):
    check(entry, floor)
