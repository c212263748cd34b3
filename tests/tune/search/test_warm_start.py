"""Trials that begin with what the nearest of the best have learned."""

import math

import pytest
from ray import tune
from ray.tune.search import BasicVariantGenerator

import ray_deltastn as rd
from ray_deltastn import DeltaSTNTrainable, SkOptSearch, WarmStart
from ray_deltastn.cli import main
from ray_deltastn.tune.config import ConfigError, ExperimentConfig
from ray_deltastn.tune.folder.log import read_log
from tests.tune.search.proposals import Listed, report
from tests.tune.tiny import CONFIG, finish

SPACE = {"lr": tune.loguniform(0.001, 1.0), "inner": {"width": tune.randint(0, 100)}, "kind": tune.choice(["a", "b"])}


def options(lr, width=50, kind="a"):
    return {"lr": lr, "inner": {"width": width}, "kind": kind}


def searched(configs, share=1.0, mode="min"):
    search = WarmStart(Listed(configs), share=share)
    search.set_search_properties("loss", mode, SPACE)
    return search


def started(search, trial_id="next"):
    return search.suggest(trial_id).get("warm_start")


@pytest.mark.parametrize(
    ("wanted", "rate"),
    [
        (options(0.01), 0.1),  # in the logarithm 0.01 is nearer to 0.003 than to 0.5
        (options(0.4), 0.2),
        (options(0.01, kind="b"), 0.3),  # another choice is as far as a whole range
        (options(0.4, width=95), 0.4),
    ],
)
def test_the_nearest_in_the_searched_options_teaches(wanted, rate):
    known = [options(0.003), options(0.5), options(0.003, kind="b"), options(0.5, width=100)]
    search = searched([*known, wanted])
    for i in range(4):
        assert started(search, str(i)) is None
    for i in range(4):
        search.on_trial_complete(str(i), report(1.0, 0.1 * (i + 1)))
    start = started(search)
    assert start["values"] == pytest.approx({"rate": rate})
    assert start["scale"] == pytest.approx({"rate": 2 * rate})


@pytest.mark.parametrize(("mode", "rate"), [("min", 0.2), ("max", 0.3)])
def test_only_the_best_teach(mode, rate):
    search = searched([options(0.01)] * 4, share=0.3, mode=mode)
    for i, loss in enumerate((0.5, 0.1, 0.9)):
        search.suggest(str(i))
        search.on_trial_complete(str(i), report(loss, 0.1 * (i + 1)))
    assert started(search)["values"] == pytest.approx({"rate": rate})


def test_methods_that_perturb_nothing_teach_values_only():
    search = searched([options(0.01)] * 2)
    search.suggest("0")
    search.on_trial_complete("0", {**report(0.5, 0.3), "scale/rate": 0.0})
    assert started(search) == {"values": {"rate": 0.3}, "scale": {}}


def test_failed_and_diverged_trials_teach_nothing_and_are_told_on():
    search = searched([options(0.01)] * 4)
    for i in range(3):
        search.suggest(str(i))
    search.on_trial_complete("0", report(math.inf, 0.1))
    search.on_trial_complete("1", error=True)
    search.on_trial_complete("2", report(0.5, math.nan))
    assert started(search) is None
    assert search.searcher.told == [("0", False), ("1", True), ("2", False)]


def test_a_restored_search_goes_on_alike(tmp_path):
    def begun():
        search = WarmStart(SkOptSearch(random_state=3, n_initial_points=2))
        search.set_search_properties("loss", "min", SPACE)
        return search

    def ended(search, numbers):
        for i in numbers:
            search.on_trial_complete(str(i), report(0.1 * i + 0.1, 0.1 * i + 0.1))

    one = begun()
    for i in range(4):
        one.suggest(str(i))
    ended(one, (2, 0))
    one.save(str(tmp_path / "state"))
    two = begun()
    two.restore(str(tmp_path / "state"))
    for search in (one, two):
        ended(search, (1, 3))
    assert one.finished == two.finished
    assert len(one.finished) == 4
    assert one.suggest("4") == two.suggest("4")
    (tmp_path / "other").write_text("{}")
    with pytest.raises(ValueError, match="must hold for the state of a WarmStart"):
        two.restore(str(tmp_path / "other"))


def test_what_cannot_be_is_refused():
    with pytest.raises(TypeError, match="`searcher` must be a Searcher such as SkOptSearch, got BasicVariantGenerator"):
        WarmStart(BasicVariantGenerator())
    with pytest.raises(ValueError, match="`0 < share <= 1` must hold, got share=0"):
        WarmStart(Listed([]), share=0)


def test_a_trial_begins_where_it_is_told():
    learned = finish(DeltaSTNTrainable(CONFIG))[-1]
    start = {
        "values": {name: learned[f"hyperparameters/{name}"] for name in ("dropout", "decay")},
        "scale": {name: learned[f"scale/{name}"] for name in ("dropout", "decay")},
    }
    trial = DeltaSTNTrainable({**CONFIG, "warm_start": start})
    assert trial.tuner.hyperparameters() == pytest.approx(start["values"])
    assert dict(zip(trial.tuner.space.names, trial.tuner.space.scale.tolist(), strict=True)) == pytest.approx(
        start["scale"], rel=1e-5
    )
    first = trial.train()  # a warm-up epoch: no hyper step yet
    assert first["hyperparameters/dropout"] == pytest.approx(start["values"]["dropout"], rel=1e-5)


def test_a_trial_of_the_paper_begins_at_a_value_that_the_clamped_maps_would_not_have():
    # The search range of the decay begins at 1e-6.
    start = {"values": {"dropout": 0.3, "decay": 1e-9}, "scale": {"dropout": 0.5}}
    space = DeltaSTNTrainable({**CONFIG, "preset": "paper", "warm_start": start}).tuner.space
    assert space.values().tolist() == pytest.approx([0.3, 1e-9], rel=1e-5)
    assert space.scale.tolist() == pytest.approx([0.5, 1.0])  # 0.5 is also the initial scale of the line


def test_a_start_is_never_where_nothing_moves():
    space = rd.HyperSpace(rate=rd.Bounded(0.1, low=0, high=1), holes=rd.Integer(1, low=0, high=4), decay=rd.Positive(1))
    space.use("open")
    space.start_from({"rate": 1e-9, "holes": 4, "decay": 1e-9})
    assert space.lam.tolist() == pytest.approx([-4.0, 4.0, math.log(1e-9)])
    space.start_from({"rate": 0.25}, {"holes": 0.5})
    assert space.values().tolist() == pytest.approx([0.25, 4, 1e-9])
    assert space.scale.tolist() == pytest.approx([1.0, 0.5, 1.0])
    space.use("clamped")
    space.start_from({"rate": 0.0, "holes": 4, "decay": 1e-9})
    assert space.lam.tolist() == pytest.approx([-2.0, 2.0, math.log(1e-3)])  # three decades below 1
    for values, scale, reason in (
        ({"rates": 0.1}, {}, "names the unknown hyperparameter 'rates'"),
        ({"rate": 1.5}, {}, "value=1.5"),
        ({}, {"rate": 0.0}, "`scale > 0` must hold, got 0.0 for 'rate'"),
    ):
        with pytest.raises(ValueError, match=reason):
            space.start_from(values, scale)


YAML = """
task: tests.tune.tiny:build
train: {epochs: 3, batch_size: 16, warmup: 1, hyper_lr: 0.2}
search: {lr: "loguniform(0.01, 0.3)"}
tune: {num_samples: 3, max_concurrent: 1, warm_start: true}
"""


def test_the_command_starts_warm(tmp_path, ray_cluster):
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(YAML)
    assert main(["run", str(config), "--out", str(out)]) == 0
    # The log has the trials in the order in which they reported; whole seconds, as in the table, may be the same.
    trials = [[report.result["hyperparameters/dropout"] for report in trial] for trial in read_log(out).values()]
    # No hyper step has been taken in the first epoch: it shows the value that a trial began with.
    assert trials[0][0] == pytest.approx(0.1, rel=1e-5)
    assert trials[1][0] == pytest.approx(trials[0][-1], rel=1e-4)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("tune.searcher=random", "`tune.warm_start` needs a searcher that learns (bo, optuna-tpe, optuna-gp)"),
        ("train.method=fixed", "`tune.warm_start` needs methods that tune hyperparameters, got 'fixed'"),
    ],
)
def test_warm_starts_that_cannot_be_are_refused(override, reason, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(YAML)
    with pytest.raises(ConfigError) as error:
        ExperimentConfig.read(config, [override])
    assert reason in str(error.value)
