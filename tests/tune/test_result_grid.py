"""From the `ResultGrid` of a search to the best trial's plain weights, and to its schedule."""

from pathlib import Path

import pytest
import torch
from ray import tune

import ray_deltastn as rd
from ray_deltastn import DeltaSTNTrainable
from tests.tune.tiny import CONFIG, build


@pytest.fixture(scope="module", params=["delta-stn", "stn", "fixed"])
def grid(request, ray_cluster, tmp_path_factory):
    return tune.Tuner(
        DeltaSTNTrainable,
        param_space={**CONFIG, "method": request.param, "lr": tune.grid_search([0.05, 0.1])},
        tune_config=tune.TuneConfig(metric="best_valid_loss", mode="min", max_concurrent_trials=2),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path_factory.mktemp("grid")),
            name="run",
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    ).fit()


def test_the_best_trials_weights_give_its_reported_loss(grid):
    best = grid.get_best_result()
    task = build(best.config)
    weights = rd.load_weights(best)
    assert list(weights) == list(task.model.state_dict())
    task.model.load_state_dict(weights)
    x, y = task.valid
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(task.model.eval()(x), y)
    assert float(loss) == pytest.approx(best.metrics["best_valid_loss"], rel=1e-5)


def test_result_checkpoint_and_path_give_the_same(grid):
    best = grid.get_best_result()
    whole = rd.load_weights(best)
    for source in (best.checkpoint, best.checkpoint.path, Path(best.checkpoint.path)):
        assert all(torch.equal(value, whole[name]) for name, value in rd.load_weights(source).items())
        assert rd.load_schedule(source).equals(rd.load_schedule(best))


def test_the_schedule_is_that_of_the_trial_and_refit_takes_it(grid):
    best = grid.get_best_result()
    trial = DeltaSTNTrainable(best.config)
    while not trial.train()["done"]:
        pass
    schedule = rd.load_schedule(best)
    assert schedule.equals(trial.tuner.schedule())
    weights = rd.refit(build(best.config), schedule, lr=best.config["lr"], batch_size=16)
    assert list(weights) == list(build({}).model.state_dict())
