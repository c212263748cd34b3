"""Networks of transformers train as they are, and their responses are exact."""

import pytest

from tests.models.checked import cases, check, entries

TRANSFORMERS = entries("transformers_models", "TRANSFORMERS", "transformers")
#: Least share of the weights that respond.
FLOORS = {
    "BERT": 0.97,
    "RoBERTa": 1.0,
    "DistilBERT": 0.97,
    "GPT-2": 0.98,
    "T5": 0.98,
    "Llama": 1.0,
    "Mixtral": 0.18,
    "ViT": 1.0,
}


@pytest.mark.parametrize(("entry", "floor"), cases(TRANSFORMERS, FLOORS))
def test_a_network_trains_and_its_response_is_exact(entry, floor):
    check(entry, floor)
