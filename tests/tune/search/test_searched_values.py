"""What an experiment makes of its searched values before any trial starts."""

import pytest

import ray_deltastn as rd
from ray_deltastn.compare.plan import CompareConfig
from ray_deltastn.tune.config import ConfigError, ExperimentConfig
from ray_deltastn.tune.experiment import check_task

FIXED = {"method": "fixed", "epochs": 4, "batch_size": 16}  # 64 examples: 4 steps an epoch


def experiment(search, **train):
    return ExperimentConfig(task="tests.tune.tiny:build", train={**FIXED, **train}, search=search)


def reports(search, **train):
    train = {name: value for name, value in {**FIXED, **train}.items() if name not in search}
    return check_task(ExperimentConfig(task="tests.tune.tiny:build", train=train, search=search)).reports


@pytest.mark.parametrize(
    ("search", "train", "expected"),
    [
        ({}, {}, 4),
        ({"epochs": "randint(2, 8)"}, {}, 7),
        ({"epochs": "qrandint(1, 10, 3)"}, {}, 9),
        ({"epochs": "qrandint(2, 8, 2)"}, {}, 8),
        ({"epochs": "choice([3, 6, 5])"}, {}, 6),
        ({}, {"steps_per_report": 3}, 6),  # of 16 steps
        ({"steps_per_report": "qrandint(2, 9, 3)"}, {}, 6),
        ({"steps_per_report": "choice([None, 5])"}, {}, 4),
        ({"steps_per_report": "choice([None, 2])"}, {}, 8),
        ({"batch_size": "qrandint(5, 30, 8)"}, {"steps_per_report": 1}, 32),  # batches of 8
    ],
)
def test_reports_are_those_of_the_longest_trial(search, train, expected):
    assert reports(search, **train) == expected


@pytest.mark.parametrize(
    ("domain", "got"),
    [
        ("uniform(0.0, 1.5)", "value=1.4999999999999998"),
        ("quniform(0.5, 1.0, 0.25)", "value=1.0"),
        ("choice([0.1, -0.2, 0.3])", "value=-0.2"),
        ("choice([[0.1, 0.2], [0.3, 0.95]])", "value=0.95"),
    ],
)
def test_a_hyperparameter_is_searched_inside_its_domain(domain, got):
    with pytest.raises(ValueError, match=r"`low <= value <= high` must hold, .* for 'dropout'") as error:
        check_task(experiment({"hyperparameters.dropout": domain}))
    assert got in str(error.value)


@pytest.mark.parametrize("domain", ["uniform(0.0, 0.9)", "quniform(0, 0.75, 0.25)", "choice([0.9, [0.1, 0.2]])"])
def test_a_hyperparameter_may_be_searched_up_to_its_bounds(domain):
    check_task(experiment({"hyperparameters.dropout": domain}))


@pytest.mark.parametrize(
    ("search", "train"),
    [
        ({"preset": "choice(['recommended', 'paper'])"}, {}),
        ({"domains": "choice(['clamped', 'open'])"}, {}),
        ({"domains": "choice([None, 'clamped'])"}, {"preset": "paper"}),
    ],
)
def test_the_task_is_checked_with_each_set_of_maps_that_is_searched(search, train, monkeypatch):
    check_task(experiment(search, **train))
    at_zero = rd.Bounded(0.0, low=0.0, high=0.9)
    monkeypatch.setattr("tests.tune.tiny.rd.Bounded", lambda *args, **options: at_zero)
    with pytest.raises(ValueError, match=r"initial=0.0, .* for 'dropout', whose map \(sigmoid\) does not reach 0.0"):
        check_task(experiment(search, **train))
    check_task(experiment({}))


@pytest.mark.parametrize("kind", [ExperimentConfig, CompareConfig])
@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("options.lr=0.5", "`options.lr` must not be given, got 0.5"),
        ("options.seed=1", "`options.seed` must not be given, got 1"),
        ("options.task=tests.tune.tiny:build", "`options.task` must not be given"),
        ("options.resources.cpu=3", "`options.resources` must not be given"),
        ("options.warm_start.values={}", "`options.warm_start` must not be given"),
        ("search.options.seed=randint(0, 9)", "`search.options.seed` must not be given"),
        ("search.options.task=choice(['digits-mlp'])", "`search.options.task` must not be given"),
    ],
)
def test_options_cannot_replace_what_belongs_to_the_trial(kind, override, rule, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("task: digits-mlp\ntrain: {epochs: 2}\n")
    single = [f"single={{'{override.partition('=')[0].removeprefix('search.')}': 1}}"]
    overrides = [override, *(single if kind is CompareConfig and override.startswith("search") else [])]
    with pytest.raises(ConfigError) as error:
        kind.read(path, overrides)
    assert str(error.value).startswith(rule)
    assert "\n" not in str(error.value)
