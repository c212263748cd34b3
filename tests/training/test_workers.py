"""Data-parallel training: two processes that `torchrun` has started train as one process does."""

import re
from itertools import chain

import pytest
import torch

import ray_deltastn as rd
from tests.torchrun import ROOT, TWO, found_by_two, run_python
from tests.training.runs import assert_same_tensors, make_task, make_tuner, reports_of, tensors_of
from tests.training.two_workers import RUNS, exact_run

pytestmark = pytest.mark.slow

#: Words in the message of what is refused.
REFUSED = {
    "ift": ["`method`", "'ift'"],
    "graph": ["`graph`", "'on'"],
    "sparse": ["`sparse=True`", "'0'"],
    "synchronised": ["SyncBatchNorm '1'", "'delta-stn'"],
    "settings": ["`lr`", "0.1", "1.1", "worker 1"],
    "data": ["first examples of `train`"],
    "length": ["minibatches of `train`", "got 7", "and 8"],
    "domain": ["hyperparameter 'first'", "0.9", "0.5", "worker 1"],
    "more": ["`penalty`", "'more'", "worker 1"],
    "metrics": ["`metrics`", "'margin'"],
    "identity": ["`identity['text']`", "got 0", "and 1"],
    "streams": ["`batch_size` of the `Segments` of `train`", "got 1"],
    "sampler": ["`DistributedSampler` of `train`", "(4, 0)"],
    "few rows": ["at least two examples", "BatchNorm1d '1'"],
    "odd": ["gradients for the same parameters"],
    "weights": ["same weights", "worker 1"],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two workers has found."""
    return found_by_two("tests.training.two_workers", tmp_path_factory.mktemp("workers"))


@pytest.fixture(scope="module")
def alone():
    """The runs without noise on one worker."""
    return {f"{method} {variant}": exact_run(method, variant) for method, variant in RUNS}


RUN_NAMES = [f"{method} {variant}" for method, variant in RUNS]


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("run", RUN_NAMES)
def test_gradients_of_weights_response_and_hyperparameters_are_those_of_one_worker(found, alone, run):
    # With a last minibatch of one example, which leaves the second worker without a row.
    for own in found:
        assert len(own[run]["gradients"]) == len(alone[run]["gradients"])
        for two, one in zip(own[run]["gradients"], alone[run]["gradients"], strict=True):
            close(two, one)


@pytest.mark.parametrize("run", RUN_NAMES)
def test_weights_response_and_hyperparameters_become_those_of_one_worker(found, alone, run):
    for own in found:
        close(own[run]["tensors"], alone[run]["tensors"])


@pytest.mark.parametrize("run", RUN_NAMES)
def test_reports_are_those_of_one_worker(found, alone, run):
    for two, one in zip(found[0][run]["reports"], alone[run]["reports"], strict=True):
        assert two.keys() == one.keys()
        assert {k: v for k, v in two.items() if isinstance(v, str)} == {
            k: v for k, v in one.items() if isinstance(v, str)
        }
        numbers = {k: v for k, v in one.items() if not isinstance(v, str)}
        assert {k: two[k] for k in numbers} == pytest.approx(numbers, rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("run", [*RUN_NAMES, "noise"])
def test_all_workers_have_the_same_reports_and_tensors_to_the_bit(found, run):
    name = "whole" if run == "noise" else "reports"
    assert str(found[0][run][name]) == str(found[1][run][name])  # as text, because NaN is not equal to itself
    assert_same_tensors(found[0][run]["tensors"], found[1][run]["tensors"])


def test_all_workers_start_from_the_weights_of_the_first(found):
    assert_same_tensors(found[0]["other start"], found[1]["other start"])
    close(found[0]["other start"], found[0]["delta-stn paper"]["tensors"])


def test_each_worker_has_perturbations_of_its_own(found):
    assert not torch.equal(found[0]["noise"]["generator"], found[1]["noise"]["generator"])


@pytest.mark.parametrize("run", ["noise", "plain noise", "segments noise"])
def test_a_resumed_run_is_the_same_to_the_bit(found, run):
    for own in found:
        assert own[run]["broken"] == [report["valid_loss"] for report in own[run]["whole"]]
        assert_same_tensors(own[run]["resumed"], own[run]["tensors"])


def test_a_state_is_the_same_on_all_workers_and_holds_plain_values_only(found, tmp_path):
    states = [own["noise"]["state"] for own in found]
    assert str(states[0]["last_report"]) == str(states[1]["last_report"])
    for one, other in zip(states[0]["workers"], states[1]["workers"], strict=True):
        assert torch.equal(one["generator"], other["generator"])
    torch.save(states[0], tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True).keys() == states[0].keys()


def test_a_state_of_two_workers_continues_on_one_with_new_random_numbers(found):
    state = found[0]["noise"]["state"]
    runs = []
    for _ in range(2):
        tuner = make_tuner(make_task("noisy-loader"))
        with pytest.warns(rd.RunWarning, match=r"same number of workers, got 2, here 1"):
            tuner.load_state_dict(state)
        assert torch.equal(tuner.model.state_dict()["1.weight"], state["model"]["1.weight"])
        runs.append((reports_of(tuner), tensors_of(tuner)))
    assert [report["epoch"] for report in runs[0][0]] == [3, 4]
    assert runs[0][0] == runs[1][0]
    assert_same_tensors(runs[0][1], runs[1][1])


def test_batch_normalisation_has_statistics_of_each_worker_and_running_ones_of_the_first(found):
    first, second = (own["normalised"] for own in found)
    for own in (first, second):
        torch.testing.assert_close(own["own"], own["expected"])
    assert not torch.allclose(first["own"], second["own"])
    assert torch.equal(first["shared"], first["own"])
    assert torch.equal(second["shared"], first["own"])


@pytest.mark.parametrize("order", ["", " in order"])
def test_the_workers_share_each_minibatch_of_a_loader(found, order):
    first, second = (own["loaders"]["loader" + order] for own in found)
    both = [sorted(one + other) for one, other in zip(first, second, strict=True)]
    assert [len(minibatch) for minibatch in both[:5]] == [5, 5, 5, 5, 3]
    assert sorted(chain(*both[:5])) == list(range(23))


def test_a_distributed_sampler_has_split_the_data_already(found):
    first, second = (own["loaders"]["sampled"] for own in found)
    assert [len(minibatch) for minibatch in first] == [5, 5, 2, 5]
    assert set(chain(*first[:3], *second[:3])) == set(range(23))
    assert first[0] != first[3]  # it has been told the next epoch


@pytest.mark.parametrize("case", REFUSED)
def test_what_workers_cannot_do_is_refused_in_one_line_on_all_of_them(found, case):
    for own in found:
        message = own["errors"][case]
        assert all(word in message for word in REFUSED[case]), message
        assert "\n" not in message


def test_all_workers_end_when_a_run_diverges(found):
    for own in found:
        assert own["diverged"][-1]["diverged"]
        assert "first not finite" in own["diverged"][-1]["stop_reason"]
    assert str(found[0]["diverged"]) == str(found[1]["diverged"])


def test_the_example_of_the_page_runs_under_torchrun_and_without(tmp_path):
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "workers.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "train.py").write_text(block)
    printed = []
    for launcher in (TWO, ()):
        said = run_python(*launcher, "train.py", cwd=tmp_path)
        printed.append([line.split() for line in said.splitlines()])
        assert [epoch for epoch, _ in printed[-1]] == ["1", "2", "3", "4"]
        assert len(torch.load(tmp_path / "state.pt", weights_only=True).get("workers", [1])) == 2 - len(printed) + 1
    assert float(printed[0][-1][1]) == pytest.approx(float(printed[1][-1][1]), rel=0.3)  # they differ by noise only


def test_a_worker_that_waits_for_the_others_gives_up_in_time(found):
    assert found[0]["late"]
    assert found[1]["late"] == ""


def test_without_torchrun_there_is_one_worker():
    with rd.Workers.join() as workers:
        assert (workers.rank, workers.size) == (0, 1)
        tuner = make_tuner(workers=workers)
        reports = reports_of(tuner)
    assert reports == reports_of(make_tuner())


def test_workers_need_an_initialised_group():
    with pytest.raises(RuntimeError, match=r"`torch.distributed` must be initialised"):
        rd.Workers()
