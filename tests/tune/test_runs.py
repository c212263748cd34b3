"""Complete runs on a small local cluster, with and without faults."""

import math

import pytest
from ray import tune

from ray_deltastn import DeltaSTNTrainable, SkOptSearch
from tests.tune.tiny import CONFIG, finish, without_times

pytestmark = pytest.mark.usefixtures("ray_cluster")

SPACE = {**CONFIG, "lr": tune.loguniform(0.01, 0.3), "momentum": tune.uniform(0.0, 0.9)}


def alone(config):
    """Last report of a trial with this config that runs in this process without interruption."""
    return finish(DeltaSTNTrainable({**config, "fault": None}))[-1]


def test_tune_run_finishes_a_hybrid_search(tmp_path):
    search = SkOptSearch(random_state=0)
    analysis = tune.run(
        DeltaSTNTrainable,
        metric="valid_loss",
        mode="min",
        config=SPACE,
        search_alg=search,
        num_samples=5,
        max_concurrent_trials=2,
        storage_path=str(tmp_path),
        reuse_actors=True,
        verbose=0,
    )
    assert [trial.status for trial in analysis.trials] == ["TERMINATED"] * 5
    assert len(search.finished) == 5
    assert not search.running
    assert sorted(record.value for record in search.finished) == sorted(
        trial.last_result["valid_loss"] for trial in analysis.trials
    )
    # Actors were reused, and each trial still has the numbers of a new process.
    for trial in analysis.trials:
        assert without_times(trial.last_result) == alone(trial.config)
    assert analysis.best_config["lr"] == min(analysis.trials, key=lambda t: t.last_result["valid_loss"]).config["lr"]


def test_tuner_finishes_a_hybrid_search(tmp_path):
    tuner = tune.Tuner(
        DeltaSTNTrainable,
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            metric="valid_loss",
            mode="min",
            num_samples=3,
            search_alg=SkOptSearch(random_state=1),
            max_concurrent_trials=2,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="tuner", verbose=0),
    )
    grid = tuner.fit()
    assert grid.num_terminated == 3
    assert grid.num_errors == 0
    best = grid.get_best_result()
    assert without_times(best.metrics) == alone(best.config)


def test_a_fault_of_one_trial_does_not_affect_the_others(tmp_path):
    analysis = tune.run(
        DeltaSTNTrainable,
        config={**CONFIG, "fault": tune.grid_search([None, "raise", "nan", "kill"]), "mark": str(tmp_path / "mark")},
        max_concurrent_trials=2,
        storage_path=str(tmp_path),
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=2),
        max_failures=1,
        raise_on_failed_trial=False,
        reuse_actors=True,
        verbose=0,
    )
    trials = {trial.config["fault"]: trial for trial in analysis.trials}
    assert {fault: trial.status for fault, trial in trials.items()} == {
        None: "TERMINATED",
        "raise": "ERROR",
        "nan": "TERMINATED",
        "kill": "TERMINATED",
    }
    sound = alone(CONFIG)
    assert without_times(trials[None].last_result) == sound
    # The killed trial continued from its last checkpoint in another process and ended with the same numbers.
    assert (tmp_path / "mark").exists()
    assert trials["kill"].last_result["training_iteration"] == CONFIG["epochs"]
    assert without_times(trials["kill"].last_result) == sound
    assert trials["nan"].last_result["valid_loss"] == math.inf
    assert "diverged" in trials["nan"].last_result["stop_reason"]


def test_searcher_records_failed_and_diverged_trials_as_bad(tmp_path):
    search = SkOptSearch(random_state=2)
    tune.run(
        DeltaSTNTrainable,
        metric="valid_loss",
        mode="min",
        config={**SPACE, "fault": tune.choice([None, "raise", "nan"])},
        search_alg=search,
        num_samples=4,
        max_concurrent_trials=2,
        storage_path=str(tmp_path),
        reuse_actors=True,
        raise_on_failed_trial=False,
        verbose=0,
    )
    assert len(search.finished) == 4
    names = ["lr", "momentum", "fault"]
    assert search._space is not None
    for record in search.finished:
        config = search._space.decode(record.point)
        assert set(config) == set(names)
        assert (record.value is None) == (config["fault"] is not None)
    assert {search._space.decode(r.point)["fault"] for r in search.finished} > {None}


def test_population_based_training_takes_effect_on_the_optimiser(tmp_path):
    scheduler = tune.schedulers.PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        quantile_fraction=0.5,
        resample_probability=0.0,
        hyperparam_mutations={"lr": [0.001, 0.01, 0.1]},
        synch=True,
    )
    analysis = tune.run(
        DeltaSTNTrainable,
        metric="valid_loss",
        mode="min",
        scheduler=scheduler,
        reuse_actors=True,
        config={**CONFIG, "epochs": 6, "lr": tune.grid_search([0.0001, 0.1])},
        storage_path=str(tmp_path),
        verbose=0,
        checkpoint_config=tune.CheckpointConfig(num_to_keep=4),
    )
    assert [trial.status for trial in analysis.trials] == ["TERMINATED"] * 2
    assert scheduler._num_perturbations >= 1
    for trial in analysis.trials:
        assert trial.last_result["lr"] == trial.config["lr"]  # the report holds the optimiser's learning rate
