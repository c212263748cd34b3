"""Schedulers that a user gives to `tune.Tuner`: clamped domains, the columns of λ, and mutations of hyperparameters."""

import functools
import math

import pytest
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, PopulationBasedTraining

from ray_deltastn import DeltaSTNTrainable
from ray_deltastn.tune import make_scheduler
from ray_deltastn.tune.population import within
from tests.tune.tiny import CONFIG, build, finish, without_times

EPOCHS = 6
LOW, HIGH = 0.5, 0.9  # the range of dropout; 1.2 · 0.9 is outside its domain
OUTER = {**CONFIG, "epochs": EPOCHS, "lr": tune.loguniform(1e-4, 0.3)}
#: Configs of trials whose hyperparameters a scheduler changes, in ranges that end where the domains end.
MUTATED = {
    "momentum": tune.uniform(0.5, 0.99),
    "hyperparameters": {"dropout": tune.uniform(LOW, HIGH), "decay": tune.loguniform(1e-5, 1e-1)},
}
FIXED = {**OUTER, "method": "fixed", "resources": {"cpu": 0.5}, **MUTATED}  # four run at the same time


def fit(folder, scheduler, space, samples=4, reuse=False):
    results = tune.Tuner(
        DeltaSTNTrainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="valid_loss",
            mode="min",
            num_samples=samples,
            scheduler=scheduler,
            reuse_actors=reuse,
            time_budget_s=300,
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            name="run",
            verbose=0,
            callbacks=[JsonLoggerCallback()],  # the tests disable Tune's own
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
        ),
    ).fit()
    assert not results.errors
    return results


@pytest.mark.parametrize(
    "scheduler",
    [
        ASHAScheduler(time_attr="training_iteration", max_t=EPOCHS, grace_period=1, reduction_factor=2),
        HyperBandScheduler(time_attr="training_iteration", max_t=EPOCHS, reduction_factor=3),
    ],
    ids=["asha", "hyperband"],
)
def test_trials_that_tunes_schedulers_stop_or_pause_keep_their_numbers_and_columns(scheduler, tmp_path, ray_cluster):
    results = fit(tmp_path, scheduler, OUTER, samples=5)
    lengths = [result.metrics["training_iteration"] for result in results]
    assert max(lengths) == EPOCHS
    if isinstance(scheduler, ASHAScheduler):  # five trials of this length fill one bracket of HyperBand
        assert min(lengths) < EPOCHS
    for result in results:
        alone = finish(DeltaSTNTrainable(result.config))
        last = without_times(result.metrics)
        expected = alone[result.metrics["training_iteration"] - 1]
        assert {key: last[key] for key in expected} == expected
        table = result.metrics_dataframe
        for name in ("dropout", "decay"):
            for group in ("signal", "at_bound"):
                assert table[f"{group}/{name}"].map(math.isfinite).all()
            # λ is inside its box, so the hyperparameter is inside its domain.
            low, high = build({}).space.hyperparameters[name].bounds
            assert table[f"hyperparameters/{name}"].between(low, high).all()


def own():
    """Tune's own class, which multiplies by 0.8 or 1.2 and knows no domains."""
    return PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=1,
        resample_probability=0.0,
        hyperparam_mutations=MUTATED,
        custom_explore_fn=functools.partial(within, MUTATED),
    )


@pytest.mark.parametrize(
    ("scheduler", "reuse"),
    [(own, False), (own, True), (lambda: make_scheduler("pbt", FIXED, reports=EPOCHS), True)],
    ids=["tune", "tune-reuse", "make_scheduler"],
)
def test_a_population_changes_hyperparameters_within_their_ranges(scheduler, reuse, tmp_path, ray_cluster):
    results = fit(tmp_path, scheduler(), FIXED, reuse=reuse)
    changed = 0
    for result in results:
        assert result.metrics["training_iteration"] == EPOCHS
        table = result.metrics_dataframe
        dropout = table["hyperparameters/dropout"]
        assert dropout.between(LOW, HIGH).all()
        assert table["config/momentum"].between(0.5, 0.99).all()
        # What a trial reports is what its config says at that moment.
        assert dropout.tolist() == pytest.approx(table["config/hyperparameters/dropout"].tolist(), rel=1e-6)
        changed += dropout.nunique() > 1
    assert changed > 0
