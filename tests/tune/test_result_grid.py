"""From the `ResultGrid` of a search to the best trial's plain weights, and to its schedule."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ray import tune
from ray.tune.logger import JsonLoggerCallback

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
            callbacks=[JsonLoggerCallback()],  # the results have no table of reports without a logger
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
    assert rd.load_schedule(best, best=True).equals(trial.tuner.schedule(best=True))
    weights = rd.refit(build(best.config), schedule, lr=best.config["lr"], batch_size=16)
    assert list(weights) == list(build({}).model.state_dict())


def test_the_pictures_show_the_best_trial_and_all_losses(grid):
    lowest = min(grid, key=lambda result: result.metrics_dataframe["valid_loss"].min())
    rate, decay = rd.plot.schedules(grid, space=build({}).space).axes
    table = lowest.metrics_dataframe
    assert rate.get_lines()[0].get_ydata().tolist() == table["hyperparameters/dropout"].tolist()
    assert decay.get_yscale() == "log"
    (axis,) = rd.plot.loss_over_time(grid).axes
    assert len(axis.get_lines()) == len(grid) + 1
    assert axis.get_lines()[-1].get_ydata()[-1] == table["valid_loss"].min()
    if lowest.config["method"] == "fixed":
        with pytest.raises(ValueError, match="needs a method that learns a response"):
            rd.plot.sensitivity(grid)
        return
    for source in (grid, lowest):
        axes = rd.plot.sensitivity(source).axes
        assert [axis.get_title() for axis in axes] == ["dropout", "decay"]
        assert axes[1].get_xscale() == "log"
        assert np.isfinite(axes[0].get_lines()[0].get_ydata()).all()
