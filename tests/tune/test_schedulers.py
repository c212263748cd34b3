"""Tune's schedulers on real trials: what is stopped, paused, resumed and copied keeps its numbers to the bit."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pandas as pd
import pytest
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers.pbt import _PBTTrialState

from ray_deltastn import DeltaSTNTrainable
from ray_deltastn.cli import main
from ray_deltastn.tune.config import ConfigError, ExperimentConfig
from ray_deltastn.tune.folder.log import read_log
from ray_deltastn.tune.folder.results import read_results
from ray_deltastn.tune.population import mutations, within
from ray_deltastn.tune.schedulers import make_scheduler
from ray_deltastn.tune.task_check import check_task
from tests.tune.tiny import CONFIG, finish, without_times

EPOCHS = 9
YAML = f"""
task: tests.tune.tiny:build
train: {{epochs: {EPOCHS}, batch_size: 16, warmup: 1, train_interval: 1, hyper_lr: 0.05, momentum: 0.5}}
search: {{lr: "loguniform(0.0001, 0.3)"}}
tune: {{searcher: random, num_samples: 6, checkpoint_every: 1}}
"""


@pytest.fixture
def experiment(tmp_path, ray_cluster):
    def run(scheduler, *changes):
        config, out = tmp_path / "tiny.yaml", tmp_path / "out"
        config.write_text(YAML)
        sets = [part for change in (f"tune.scheduler={scheduler}", *changes) for part in ("--set", change)]
        assert main(["run", str(config), "--out", str(out), *sets]) == 0
        return out, read_results(out / "results.csv")

    return run


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_trials_that_are_stopped_or_paused_keep_their_numbers(scheduler, experiment):
    out, results = experiment(scheduler)
    lengths = results.groupby("trial_id")["training_iteration"].max()
    assert len(lengths) == 6
    assert lengths.max() == EPOCHS
    assert 4 <= lengths.min() < EPOCHS  # it did stop some, after 4 train steps of warm-up and 10 hyper steps
    log = read_log(out)
    for name, trial in results.groupby("trial_id"):
        alone = finish(DeltaSTNTrainable(log[str(name)][-1].config))
        for _, row in trial.iterrows():
            expected = alone[int(row["training_iteration"]) - 1]
            for key in ("valid_loss", "train_loss", "hyperparameters/dropout", "scale/decay", "lr"):
                assert row[key] == expected[key], (name, key)
    best = results.loc[results["valid_loss"].idxmin(), "trial_id"]
    assert lengths[best] == EPOCHS


@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_a_population_copies_perturbs_and_says_so(scheduler, experiment):
    # Two of five are copied after each of the first three epochs; more would be more of the same.
    soon = ("train.warmup=0", "train.batch_size=4")
    out, results = experiment(scheduler, "train.epochs=4", "tune.num_samples=5", *soon)
    lineage = pd.read_csv(out / "lineage.csv", dtype={"trial_id": str, "copied_from": str})
    assert len(lineage) > 0
    assert set(lineage["copied_from"]) | set(lineage["trial_id"]) <= set(results["trial_id"])
    for _, copy in lineage.iterrows():
        first = results[
            (results["trial_id"] == copy["trial_id"]) & (results["training_iteration"] == copy["training_iteration"])
        ]
        assert len(first) == (not pd.isna(copy["training_iteration"]))
        if not pd.isna(copy["to/lr"]):  # pb2 may copy and change nothing
            assert first["lr"].tolist() == pytest.approx([copy["to/lr"]] * len(first))  # the optimiser's own rate
    assert lineage["to/lr"].notna().any()
    assert lineage["trial_id"].nunique() > 1
    # Every trial got its turn although only two run at a time: the synchronous mode.
    assert results.groupby("trial_id")["training_iteration"].max().tolist() == [4] * 5


def test_a_trial_whose_resources_change_goes_on_to_the_bit(tmp_path, larger_ray_cluster):
    def more(controller, trial, result, scheduler):
        return tune.PlacementGroupFactory([{"CPU": 2 if result["training_iteration"] >= 2 else 1}])

    analysis = tune.run(
        DeltaSTNTrainable,
        metric="valid_loss",
        mode="min",
        config=CONFIG,
        storage_path=str(tmp_path),
        verbose=0,
        time_budget_s=300,
        scheduler=tune.schedulers.ResourceChangingScheduler(resources_allocation_function=more),
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
        reuse_actors=False,
    )
    trial = analysis.trials[0]
    assert trial.placement_group_factory.required_resources["CPU"] == 2
    last = without_times(trial.last_result)
    expected = finish(DeltaSTNTrainable(CONFIG))[-1]
    assert {key: last[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        # 64 examples: 4 train steps in an epoch. 10 hyper steps follow the warm-up, one after every 5 train steps.
        ({"warmup": 5}, 18),  # (20 + 50) / 4
        ({"warmup": 0}, 13),
        ({"warmup_steps": 2, "train_interval": 1}, 3),
        ({"warmup": 5, "train_interval": 2, "valid_interval": 4}, 7),
        ({"warmup": 5, "steps_per_report": 2}, 35),
        ({"warmup": 5, "method": "fixed"}, 1),
        ({"warmup": 5, "epochs": 15}, 15),  # never: no report is early enough to stop
    ],
)
def test_no_trial_is_judged_before_the_warm_up_and_ten_hyper_steps(train, expected):
    config = {"epochs": 40, "batch_size": 16, "hyper_lr": 0.05, **train}
    search = {"lr": "loguniform(0.0001, 0.3)"}
    grace = check_task(ExperimentConfig(task="tests.tune.tiny:build", train=config, search=search)).grace
    assert grace == expected


def test_the_longest_wait_of_all_searched_values_counts():
    search = {"batch_size": "choice([8, 32])", "warmup": "choice([1.0, 2.0])"}
    config = {"epochs": 60, "train_interval": 1}
    grace = check_task(ExperimentConfig(task="tests.tune.tiny:build", train=config, search=search)).grace
    assert grace == 7  # batches of 32, 2 steps in an epoch: (4 + 10) / 2


@pytest.mark.parametrize("grace", [1, 3, 7, 27, 40])
def test_no_scheduler_stops_or_copies_before_its_grace(grace):
    first = min(grace, 27)

    def made(name):
        return make_scheduler(name, {"lr": tune.uniform(0, 1)}, reports=27, grace=grace)

    assert made("asha")._brackets[0]._rungs[-1][0] == max(3, first)
    assert made("median")._grace_period == max(3, first)
    hyperband, plain = made("hyperband"), tune.schedulers.HyperBandScheduler(max_t=27, reduction_factor=3)
    for s in range(4):
        assert hyperband._get_r0(s) == max(first, plain._get_r0(s))
        assert hyperband._get_n0(s) == plain._get_n0(s)
    for name in ("pbt", "pb2"):
        population = made(name)
        assert population._burn_in_period == first
        assert population._next_perturbation_sync == max(3, first)
        assert population._perturbation_interval == 3


@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_a_population_is_copied_at_the_same_report_of_all(scheduler):
    assert make_scheduler(scheduler, {"lr": tune.uniform(0, 1)}, reports=8)._synch is True


# Trials after a resumption: one goes on from report 3, the next from report 4 and so on; any may report first.
@pytest.mark.parametrize("kind", ["pbt", "pb2"])
@pytest.mark.parametrize(
    "order",
    [
        [(0, 4), (1, 5), (0, 5)],
        [(1, 5), (0, 4), (0, 5)],
        [(0, 4), (1, 5), (2, 6), (0, 5), (0, 6), (1, 6)],
        [(2, 6), (1, 5), (1, 6), (0, 4), (0, 5), (0, 6)],
    ],
)
def test_a_resumed_population_is_copied_when_those_behind_have_caught_up(kind, order, monkeypatch):
    scheduler = make_scheduler(kind, {"lr": tune.uniform(0, 1)}, reports=12)
    scheduler.set_search_properties("valid_loss", "min")
    count, last = 1 + max(number for number, _ in order), max(iteration for _, iteration in order)
    trials = [MagicMock(status=Trial.RUNNING, is_finished=lambda: False, config={"lr": 0.1}) for _ in range(count)]
    for trial in trials:
        scheduler._trial_state[trial] = _PBTTrialState(trial)
    controller = MagicMock(get_live_trials=lambda: set(trials), get_trials=lambda: trials)
    at, copied = {}, []
    monkeypatch.setattr(scheduler, "_checkpoint_or_exploit", lambda *about: copied.append(list(at.values())))
    for number, iteration in order:
        # Who is behind is running, or is the one that may run.
        if trials[number].status == Trial.PAUSED:
            assert scheduler.choose_trial_to_run(controller) is trials[number]
        at[number] = iteration
        result = {"training_iteration": iteration, "valid_loss": 1.0}
        decision = scheduler.on_trial_result(controller, trials[number], result)
        trials[number].status = Trial.PAUSED if decision == "PAUSE" else Trial.RUNNING
    assert copied == [[last] * count] * count  # all at once, at the same report
    assert scheduler._next_perturbation_sync == last + 1


def test_bounds_of_pb2_are_those_of_continuous_ranges():
    space = {"lr": tune.loguniform(1e-3, 1), "hyperparameters": {"dropout": tune.uniform(0, 0.9)}, "width": 3}
    scheduler = make_scheduler("pb2", space, reports=8)
    assert scheduler._hyperparam_bounds == {"lr": [1e-3, 1], "hyperparameters": {"dropout": [0, 0.9]}}
    with pytest.raises(
        ValueError,
        match=r"`scheduler: pb2` changes real numbers only .*, got randint\(0, 5\) for 'hyperparameters\.holes'",
    ):
        make_scheduler("pb2", {"hyperparameters": {"holes": tune.randint(0, 5)}}, reports=8)
    with pytest.raises(ValueError, match=r"`scheduler: pb2` .*, got choice\(\[0.1, 0.2\]\) for 'lr'"):
        make_scheduler("pb2", {"lr": tune.choice([0.1, 0.2])}, reports=8)
    with pytest.raises(ValueError, match=r"`scheduler: pb2` needs one of lr"):
        make_scheduler("pb2", {}, reports=8)


def test_a_diverged_trial_is_the_worst_that_pb2_hears_of():
    scheduler = make_scheduler("pb2", {"lr": tune.uniform(0, 1)}, reports=8)
    scheduler.set_search_properties("valid_loss", "min")
    trials = [SimpleNamespace(config={"lr": 0.1 * n}) for n in range(4)]
    for n, loss in enumerate((float("inf"), 0.5, 2.0, float("inf"))):
        result = {"valid_loss": loss, "training_iteration": 1}
        scheduler._save_trial_state(SimpleNamespace(), 1, result, trials[n])
    assert scheduler.data["Reward"].tolist() == [0.0, -0.5, -2.0, -2.0]


def test_only_what_a_running_trial_may_change_is_changed():
    space = {
        "lr": tune.uniform(0, 1),
        "width": tune.randint(1, 9),
        "method": "fixed",
        "hyperparameters": {"dropout": tune.uniform(0, 0.9), "decay": 0.1},
    }
    assert {key: list(v) if isinstance(v, dict) else 0 for key, v in mutations(space).items()} == {
        "lr": 0,
        "hyperparameters": ["dropout"],
    }
    with pytest.raises(ValueError, match=r"`scheduler: pbt` needs one of lr, momentum, .* in `search`, got none"):
        mutations({"width": tune.randint(1, 9)})


def test_perturbed_values_stay_in_their_domains_and_choices_stay_choices():
    space = {
        "lr": tune.choice([0.01, 0.1]),
        "momentum": tune.uniform(0.5, 0.99),
        "hyperparameters": {"holes": tune.randint(0, 5)},
    }
    changed = mutations(space)
    assert changed["lr"] == [0.01, 0.1]
    config = within(changed, {"lr": 0.1, "momentum": 0.95 * 1.2, "hyperparameters": {"holes": 5.4}, "task": "x"})
    assert 0.98 < config.pop("momentum") < 0.99
    assert config == {"lr": 0.1, "hyperparameters": {"holes": 4}, "task": "x"}
    assert within(changed, {"lr": 0.1, "momentum": 0.4, "hyperparameters": {"holes": 2.4}})["momentum"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ["tune.scheduler=pbt", "tune.searcher=bo"],
            "`tune.scheduler: pbt` changes options itself, so `tune.searcher` must be",
        ),
        (["tune.scheduler=hyperband", "tune.max_concurrent=2"], "`tune.max_concurrent` must not be given with"),
        (["tune.warm_start=true"], "`tune.warm_start` needs a searcher that learns"),
    ],
)
@pytest.mark.parametrize("search", ["{}", "{options.width: 'randint(4, 9)'}"])
def test_what_does_not_go_together_is_refused_whatever_is_searched(overrides, reason, search, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(YAML)
    with pytest.raises(ConfigError) as error:
        ExperimentConfig.read(config, [f"search={search}", *overrides])
    assert reason in str(error.value)


def test_unknown_schedulers_are_named():
    with pytest.raises(
        ValueError, match="`scheduler` must be one of fifo, asha, hyperband, median, pbt, pb2, got 'bohb'"
    ):
        make_scheduler("bohb", {}, reports=1)
