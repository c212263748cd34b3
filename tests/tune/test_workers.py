"""A trial on several workers: started by Ray, saved and resumed, and taken back to its checkpoint when one dies."""

import math
import os
import signal

import pytest
import ray
import torch
from ray import tune

from ray_deltastn import DeltaSTNTrainable
from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.experiment import run_experiment
from tests.tune.tiny import CONFIG, finish, without_times
from tests.tune.two_workers import TWO

slow = pytest.mark.slow


@pytest.fixture
def make(ray_cluster):
    """Makes trials that Tune does not run, whose second worker is an actor."""
    made = []
    yield lambda **changes: made.append(DeltaSTNTrainable({**TWO, **changes})) or made[-1]
    for trial in made:
        trial.stop()


def run(tmp_path, config, **arguments):
    """The trials of an experiment of Tune."""
    return tune.run(
        DeltaSTNTrainable,
        config=config,
        storage_path=str(tmp_path),
        metric="valid_loss",
        mode="min",
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
        verbose=0,
        **arguments,
    ).trials


@pytest.mark.parametrize(
    ("resources", "bundles"),
    [
        ({"workers": 1}, [{"CPU": 1}]),
        ({"workers": 3, "cpu": 2}, [{"CPU": 2}] * 3),
        ({"workers": 2, "cpu": 4, "gpu": 1}, [{"CPU": 4, "GPU": 1}] * 2),
    ],
)
def test_a_trial_requests_a_bundle_for_each_worker(resources, bundles):
    assert DeltaSTNTrainable.default_resource_request({**CONFIG, "resources": resources}).bundles == bundles


@slow
def test_a_trial_resumes_to_the_bit_and_its_workers_serve_the_next_one(make, tmp_path):
    trial = make()
    unbroken = [without_times(trial.train()) for _ in range(2)]
    trial.save(str(tmp_path))
    unbroken += finish(trial)
    members = [member._actor_id for member in trial._crew.members]
    torch.manual_seed(99)
    assert trial.reset_config(TWO)
    assert [member._actor_id for member in trial._crew.members] == members
    trial.restore(str(tmp_path))
    assert finish(trial) == unbroken[2:]
    assert trial.reset_config(CONFIG)  # on one worker
    assert trial._crew is None
    assert finish(trial) == finish(DeltaSTNTrainable(CONFIG))


@slow
def test_a_worker_that_dies_fails_the_trial_at_once(make):
    trial = make()
    trial.train()
    (member,) = trial._crew.members
    os.kill(ray.get(member.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker 1 of the trial died"):
        trial.train()
    assert trial._crew.ended
    assert not torch.distributed.is_initialized()


@slow
def test_a_worker_that_does_not_answer_fails_the_trial_in_time(make, monkeypatch):
    monkeypatch.setattr("ray_deltastn.tune.trainable.TIMEOUT", 8.0)
    monkeypatch.setattr("ray_deltastn.tune.crew.CAUSE_SECONDS", 1.0)
    trial = make()
    trial.train()
    (member,) = trial._crew.members
    os.kill(ray.get(member.__ray_call__.remote(lambda _: os.getpid())), signal.SIGSTOP)
    with pytest.raises(RuntimeError, match=r"(?i)timed out"):
        trial.train()
    assert trial._crew.ended


@slow
def test_the_error_of_a_worker_is_that_of_the_trial(make):
    trial = make(fault="raise")
    with pytest.raises(RuntimeError, match=r"worker 1 of the trial failed: ValueError: a fault on demand"):
        finish(trial)


@slow
def test_a_trial_ends_as_finished_if_a_worker_has_too_little_memory(make, tmp_path):
    trial = make(fault="memory")
    reports = finish(trial)
    assert reports[-1]["valid_loss"] == math.inf
    assert "worker 1 of the trial failed: OutOfMemoryError: no memory on demand" in reports[-1]["stop_reason"]
    trial.save(str(tmp_path))  # Tune saves a trial at its end


@slow
def test_a_trial_that_loses_a_worker_continues_from_its_checkpoint_with_the_same_numbers(ray_cluster, tmp_path):
    broken = {**TWO, "fault": "kill", "mark": str(tmp_path / "killed")}
    (trial,) = run(tmp_path / "broken", broken, max_failures=1)
    (unbroken,) = run(tmp_path / "whole", TWO)
    assert (tmp_path / "killed").exists()
    assert trial.num_failures == 1
    assert trial.last_result["training_iteration"] == 5
    assert without_times(trial.last_result) == without_times(unbroken.last_result)


@slow
def test_population_based_training_copies_states_of_several_workers(ray_cluster, tmp_path):
    scheduler = tune.schedulers.PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        hyperparam_mutations={"lr": [0.05, 0.2]},
        quantile_fraction=0.5,
        synch=True,
    )
    config = {**TWO, "lr": tune.grid_search([1e-5, 0.1])}
    trials = run(tmp_path, config, scheduler=scheduler, reuse_actors=True)
    assert [trial.status for trial in trials] == ["TERMINATED"] * 2
    assert all(trial.last_result["epoch"] == 5 for trial in trials)
    assert trials[0].config["lr"] > 0.04  # it has taken the state of the other one
    assert trials[0].last_result["lr"] == trials[0].config["lr"]


@slow
def test_an_experiment_file_asks_for_workers(ray_cluster, tmp_path):
    config = {
        "task": "tests.tune.two_workers:build",
        "train": {"epochs": 4, "batch_size": 16, "warmup": 1},
        "search": {"lr": "loguniform(0.01, 0.3)"},
        "tune": {"searcher": "random", "scheduler": "asha", "num_samples": 3, "workers": 2},
    }
    results = run_experiment(ExperimentConfig.model_validate(config), tmp_path / "out")
    assert results["trial_id"].nunique() == 3
    assert set(results["config/resources/workers"]) == {2}


def test_a_fraction_of_a_gpu_is_refused_for_several_workers():
    with pytest.raises(ValueError, match=r"`resources\.gpu` must be 0 or at least 1 for several workers, got 0\.5"):
        DeltaSTNTrainable.default_resource_request({"resources": {"workers": 2, "gpu": 0.5}})
    with pytest.raises(ValueError, match=r"`tune\.gpu` must be 0 or at least 1 for several workers, got 0\.5"):
        ExperimentConfig.model_validate({"task": "digits-mlp", "tune": {"workers": 2, "gpu": 0.5}})


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_the_number_of_workers_must_be_a_whole_number(workers):
    with pytest.raises(ValueError, match=r"`resources\.workers` must be a whole number of at least 1"):
        DeltaSTNTrainable.default_resource_request({"resources": {"workers": workers}})
