"""Data of a task: through `tune.with_parameters`, and in the config, which Tune copies."""

import functools
import threading
import warnings

import pytest
from ray import tune

import ray_deltastn as rd
from ray_deltastn import DeltaSTNTrainable
from ray_deltastn.tune.pickled import pickled_size
from tests.tune.given import large_closure, numbers, with_data
from tests.tune.tiny import CONFIG, build, finish, without_times


def test_parameters_reach_the_function_of_the_task_in_every_trial(tmp_path, ray_cluster):
    data = numbers()
    config = {**CONFIG, "task": with_data}
    with warnings.catch_warnings():
        warnings.simplefilter("error", rd.RunWarning)
        results = tune.Tuner(
            tune.with_parameters(DeltaSTNTrainable, data=data, scale=2.0),
            param_space={**config, "lr": tune.grid_search([0.05, 0.1])},
            # One worker trains both: the second trial gets the data in `reset_config`.
            tune_config=tune.TuneConfig(metric="valid_loss", mode="min", max_concurrent_trials=1, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=str(tmp_path), name="run", verbose=0),
        ).fit()
    assert not results.errors
    for result in results:
        whole = functools.partial(with_data, data=data, scale=2.0)
        expected = finish(DeltaSTNTrainable({**result.config, "task": whole}))[-1]
        last = without_times(result.metrics)
        assert {key: last[key] for key in expected} == expected
    states = [path for path in (tmp_path / "run").glob("*") if path.is_file()]
    assert states
    assert sum(path.stat().st_size for path in states) < 1_000_000


def test_a_task_that_copies_its_data_is_warned_of_in_the_driver_and_in_the_trial():
    config = {**CONFIG, "task": large_closure()}
    for act in (DeltaSTNTrainable.default_resource_request, DeltaSTNTrainable):
        with pytest.warns(rd.RunWarning, match=r"`task` must pickle to at most 10 MB.*got 10\.4 MB.*with_parameters"):
            act(config)


def test_every_large_value_of_a_config_is_warned_of_and_no_other():
    config = {**CONFIG, "table": numbers(), "nested": {"inside": [numbers()]}, "lock": threading.Lock()}
    with pytest.warns(rd.RunWarning) as told:
        DeltaSTNTrainable.default_resource_request(config)
    assert [str(one.message).split("`")[1] for one in told] == ["table", "nested"]


def test_the_size_is_that_of_rays_pickle():
    from ray import cloudpickle

    for value in (build, large_closure(), {"a": numbers()}, [1, "two"]):
        assert pickled_size(value) == len(cloudpickle.dumps(value))


@pytest.mark.parametrize("task", [build, "digits-mlp", "tests.tune.tiny:build"])
def test_a_function_without_the_parameter_is_refused_in_one_line(task):
    trainable = tune.with_parameters(DeltaSTNTrainable, data=[1.0])
    with pytest.raises(TypeError, match=r"`task` must be callable as `.*\(config, data=data\)`, got") as raised:
        trainable({"task": task})
    assert len(str(raised.value).splitlines()) == 1


def test_a_trial_with_parameters_needs_no_cluster_and_resumes(tmp_path, ray_cluster):
    trainable = tune.with_parameters(DeltaSTNTrainable, data=numbers())
    config = {**CONFIG, "task": with_data}
    whole = finish(trainable(config))
    first = trainable(config)
    first.train()
    first.save(str(tmp_path))
    again = trainable(config)
    again.restore(str(tmp_path))
    assert finish(again) == whole[1:]
