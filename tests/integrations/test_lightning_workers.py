"""Self-tuning inside Lightning on two processes gives the numbers of one, and continues to the bit."""

import pytest
import torch

pytest.importorskip("lightning.pytorch")
from tests.integrations.lightning_workers import fit
from tests.torchrun import found_by_two
from tests.training.runs import assert_same_tensors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes has found."""
    return found_by_two("tests.integrations.lightning_workers", tmp_path_factory.mktemp("lightning"))


def test_two_processes_have_the_numbers_of_one(found):
    one = fit(1)
    for own in found:
        torch.testing.assert_close(own["exact"]["tensors"], one["tensors"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(own["exact"]["schedule"], one["schedule"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(own["exact"]["history"], one["history"], rtol=1e-9, atol=1e-12)
    assert one["schedule"]["fading"][-1] != pytest.approx(0.3, abs=1e-4)  # λ has moved


@pytest.mark.parametrize("run", ["exact", "noisy", "resumed"])
def test_both_processes_have_the_same_response_and_hyperparameters(found, run):
    assert_same_tensors(found[0][run]["tensors"], found[1][run]["tensors"])
    assert found[0][run]["history"] == found[1][run]["history"]


def test_each_process_draws_by_itself(found):
    first, second = found[0]["noisy"]["state"]["workers"]
    assert not torch.equal(first["generator"], second["generator"])


def test_the_generators_of_both_processes_continue_from_a_checkpoint(found):
    for own in found:
        for whole, resumed in zip(own["noisy"]["state"]["workers"], own["resumed"]["state"]["workers"], strict=True):
            assert torch.equal(whole["generator"], resumed["generator"])
    assert found[0]["resumed"]["history"]["epoch"] == [1, 2, 3, 4]
    assert_same_tensors(found[0]["resumed"]["tensors"], found[0]["noisy"]["tensors"])
