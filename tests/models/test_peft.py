"""Networks of peft train as they are, and their responses are exact."""

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")

from benchmarks.models.peft_models import PEFT
from tests.models.checked import cases, check

#: Least share of the weights that respond.
FLOORS = {"LoRA on BERT": 1.0, "LoRA on GPT-2": 1.0}


@pytest.mark.parametrize(("entry", "floor"), cases(PEFT, FLOORS))
def test_a_network_trains_and_its_response_is_exact(entry, floor):
    check(entry, floor)
