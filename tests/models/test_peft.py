"""Networks of peft train as they are, and their responses are exact."""

import pytest

from tests.models.checked import cases, check, entries

PEFT = entries("peft_models", "PEFT", "transformers", "peft")
#: Least share of the weights that respond.
FLOORS = {"LoRA on BERT": 1.0, "LoRA on GPT-2": 1.0}


@pytest.mark.parametrize(("entry", "floor"), cases(PEFT, FLOORS))
def test_a_network_trains_and_its_response_is_exact(entry, floor):
    check(entry, floor)
