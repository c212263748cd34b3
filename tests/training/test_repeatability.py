"""A run depends on its seed, and on nothing else; it leaves no trace in the global generators."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ray_deltastn.training import random_state
from tests.training.runs import (
    DATA,
    METHODS,
    as_noisy_loader,
    assert_same_reports,
    assert_same_tensors,
    examples,
    from_bytes,
    make_task,
    make_tuner,
    reports_of,
    scramble_global_generators,
    tensors_of,
    to_bytes,
    without_seconds,
)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_same_seed_gives_the_same_run(method, data):
    runs = []
    for number in range(2):
        scramble_global_generators(number)
        tuner = make_tuner(make_task(data), method, seed=3, epochs=2)
        scramble_global_generators(10 + number)
        runs.append((reports_of(tuner), tensors_of(tuner)))
    assert_same_reports(runs[0][0], runs[1][0])
    assert_same_tensors(runs[0][1], runs[1][1])


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_another_seed_gives_another_run(method, data):
    first, second = (reports_of(make_tuner(make_task(data), method, seed=seed, epochs=2)) for seed in (3, 4))
    assert first[-1]["train_loss"] != second[-1]["train_loss"]
    assert first[-1]["valid_loss"] != second[-1]["valid_loss"]


@pytest.mark.parametrize("data", DATA)
def test_runs_stepped_alternately_are_those_run_one_after_the_other(data):
    apart = [reports_of(make_tuner(make_task(data), seed=seed, steps_per_report=5)) for seed in (0, 1)]
    first, second = (make_tuner(make_task(data), seed=seed, steps_per_report=5) for seed in (0, 1))
    together = [[], []]
    while not first.done:
        together[0].append(without_seconds(first.step()))
        together[1].append(without_seconds(second.step()))
    assert_same_reports(together[0], apart[0])
    assert_same_reports(together[1], apart[1])


def global_generators():
    return random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2:], torch.get_rng_state()


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_run_leaves_the_global_generators_as_they_were(method, data):
    task = make_task(data)
    scramble_global_generators(7)
    before = global_generators()
    tuner = make_tuner(task, method)
    tuner.step()
    tuner.load_state_dict(from_bytes(to_bytes(tuner.state_dict())))
    tuner.step()
    after = global_generators()
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])


def test_run_leaves_the_global_generators_as_they_were_when_it_fails():
    def fails(output, target):
        torch.randn(3)
        if len(output) == 16:
            raise KeyboardInterrupt
        return F.cross_entropy(output, target)

    tuner = make_tuner(make_task(loss=fails))
    scramble_global_generators(7)
    before = global_generators()
    with pytest.raises(KeyboardInterrupt):
        tuner.step()
    after = global_generators()
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_frequent_reports_do_not_change_what_is_learnt(method, data):
    seldom, often = (make_tuner(make_task(data), method, steps_per_report=n, epochs=3) for n in (None, 2))
    reports_of(seldom)
    reports_of(often)
    assert_same_tensors(tensors_of(often), tensors_of(seldom))


def test_evaluation_on_random_data_does_not_change_what_is_learnt():
    # The validation data and the model's plain dropout both draw from PyTorch's global generator.
    def build(**settings):
        return make_tuner(make_task("plain-dropout", valid=as_noisy_loader(*examples(40, 2))), epochs=3, **settings)

    seldom, often = build(), build(steps_per_report=2)
    reports_of(seldom)
    reports_of(often)
    assert_same_tensors(tensors_of(often), tensors_of(seldom))


def test_isolated_seeds_inside_and_leaves_no_trace_outside():
    scramble_global_generators(1)
    before = global_generators()
    with random_state.isolated(5):
        first = (random.random(), np.random.rand(), torch.rand(()).item())
    with random_state.isolated(5):
        second = (random.random(), np.random.rand(), torch.rand(()).item())
    after = global_generators()
    assert first == second
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])
