"""Networks of torch_geometric train as they are, and their responses are exact."""

import pytest

from tests.models.checked import cases, check, entries

PYG = entries("pyg_models", "PYG", "torch_geometric")
#: Least share of the weights that respond.
FLOORS = {"GCN": 1.0, "GAT": 1.0, "GIN": 1.0, "GraphSAGE": 1.0}


@pytest.mark.parametrize(("entry", "floor"), cases(PYG, FLOORS))
def test_a_network_trains_and_its_response_is_exact(entry, floor):
    check(entry, floor)
