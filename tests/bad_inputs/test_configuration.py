"""Mistakes in configuration files show at once, in one line with the rule, the value got and its name."""

import pytest

from tests.bad_inputs.made import assert_refused

pytest.importorskip("ray")
from ray_deltastn.tune.config import ConfigError, ExperimentConfig

GOOD = "task: digits-mlp\ntrain:\n  epochs: 2\nsearch:\n  lr: loguniform(0.01, 0.3)\ntune:\n  num_samples: 2\n"


FILES = {
    "unknown-section": (GOOD + "tunes:\n  cpu: 1\n", [], ["`tunes`", "not a known key", "did you mean `tune`"]),
    "unknown-train-key": (
        GOOD.replace("epochs", "epoch"),
        [],
        ["`train.epoch`", "not a known key", "did you mean `train.epochs`"],
    ),
    "unknown-tune-key": (
        GOOD.replace("num_samples", "num_sample"),
        [],
        ["`tune.num_sample`", "not a known key", "did you mean `tune.num_samples`"],
    ),
    "unknown-search-key": (
        GOOD.replace("  lr:", "  learning_rates:"),
        [],
        ["`search.learning_rates`", "not a known key"],
    ),
    "misspelt-search-key": (
        GOOD.replace("  lr:", "  momentun:"),
        [],
        ["`search.momentun`", "did you mean `search.momentum`"],
    ),
    "bad-domain": (
        GOOD.replace("loguniform(0.01, 0.3)", "logunifrom(0.01, 0.3)"),
        [],
        ["`search.lr`", "loguniform", "'logunifrom(0.01, 0.3)'"],
    ),
    "domain-without-bounds": (
        GOOD.replace("loguniform(0.01, 0.3)", "loguniform"),
        [],
        ["`search.lr`", "bounds", "'loguniform'"],
    ),
    "domain-with-one-bound": (
        GOOD.replace("loguniform(0.01, 0.3)", "loguniform(0.01)"),
        [],
        ["`search.lr`", "bounds", "'loguniform(0.01)'"],
    ),
    "domain-with-code": (
        GOOD.replace("loguniform(0.01, 0.3)", "choice([__import__('os').getcwd()])"),
        [],
        ["`search.lr`", "__import__"],
    ),
    "domain-with-a-bad-bound": (
        GOOD.replace("loguniform(0.01, 0.3)", "loguniform(-1, 0.3)"),
        [],
        ["`search.lr`", "loguniform(-1, 0.3)"],
    ),
    "number-for-a-domain": (GOOD.replace("loguniform(0.01, 0.3)", "0.1"), [], ["`search.lr`", "0.1"]),
    "bad-train-value": (GOOD.replace("epochs: 2", "epochs: 0"), [], ["`epochs >= 1`", "epochs=0"]),
    "bad-train-schedule": (GOOD.replace("epochs: 2", "schedule: 5"), [], ["`schedule`", "5"]),
    "bad-tune-value": (GOOD.replace("samples: 2", "samples: 0"), [], ["`tune.num_samples`", "1", "got 0"]),
    "bad-searcher": (GOOD + "  searcher: gird\n", [], ["`tune.searcher`", "'bo'", "'random'", "'gird'"]),
    "missing-task": (GOOD.replace("task: digits-mlp\n", ""), [], ["`task`", "required"]),
    "section-of-a-wrong-type": (GOOD.replace("train:\n  epochs: 2", "train: 5"), [], ["`train`", "5"]),
    "list-for-a-mapping": ("- task: digits-mlp\n", [], ["{path}", "mapping", "list"]),
    "empty-file": ("", [], ["{path}", "mapping", "NoneType"]),
    "invalid-yaml": ("task: [digits\ntrain: {", [], ["{path}", "must be YAML"]),
    "invalid-characters": (b"task: \xff\xfe\n", [], ["{path}"]),
    "missing-file": (None, [], ["{path}", "readable file", "No such file"]),
    "set-without-value": (GOOD, ["train.epochs"], ["`--set`", "key=value", "'train.epochs'"]),
    "set-without-key": (GOOD, ["=5"], ["`--set`", "key=value", "'=5'"]),
    "set-unknown-key": (GOOD, ["train.epoch=5"], ["`train.epoch`", "did you mean `train.epochs`"]),
    "set-unknown-section": (GOOD, ["trian.epochs=5"], ["`trian`", "did you mean `train`"]),
    "set-into-a-value": (GOOD, ["train.epochs.first=5"], ["`--set train.epochs.first`", "mapping", "int", "'epochs'"]),
    "set-invalid-yaml": (GOOD, ["train.epochs=[1"], ["`--set", "train.epochs", "[1"]),
    "domain-without-values": (
        GOOD.replace("loguniform(0.01, 0.3)", "uniform(0.3, 0.01)"),
        [],
        ["`low < high`", "'search.lr'", "low=0.3, high=0.01"],
    ),
    "domain-with-step-zero": (
        GOOD.replace("loguniform(0.01, 0.3)", "quniform(0.1, 0.3, 0)"),
        [],
        ["`search.lr`", "quniform(0.1, 0.3, 0)", "zero"],
    ),
    "domain-with-a-value-out-of-range": (
        GOOD.replace("lr: loguniform(0.01, 0.3)", "batch_size: qrandint(-2, 10, 3)"),
        [],
        ["`batch_size >= 1`", "batch_size=0"],
    ),
    "method-not-of-a-choice": (
        GOOD.replace("lr: loguniform(0.01, 0.3)", "method: uniform(0, 1)"),
        [],
        ["`search.method`", "choice", "'uniform(0, 1)'"],
    ),
    "learning-rate-in-options": (GOOD, ["options.lr=0.5"], ["`options.lr`", "got 0.5", "`train.lr`"]),
    "mapping-of-settings-in-options": (
        GOOD,
        ["options.schedule.name=step"],
        ["`options.schedule`", "`train.schedule`"],
    ),
    "task-in-options": (GOOD, ["options.task=other"], ["`options.task`", "got 'other'", "set `task`"]),
    "resources-in-options": (GOOD, ["options.resources.cpu=4"], ["`options.resources`", "`tune.cpu` and `tune.gpu`"]),
    "warm-start-in-options": (GOOD, ["options.warm_start={}"], ["`options.warm_start`", "`tune.warm_start`"]),
    "learning-rate-in-searched-options": (
        GOOD,
        ["search.options.momentum=uniform(0, 0.9)"],
        ["`search.options.momentum`", "'uniform(0, 0.9)'", "set `search.momentum`"],
    ),
    "hyperparameter-in-searched-options": (
        GOOD,
        ["search.options.hyperparameters.rate=uniform(0, 0.9)"],
        ["`search.options.hyperparameters.rate`", "set `search.hyperparameters.rate`"],
    ),
    "task-in-searched-options": (
        GOOD,
        ["search.options.task=choice(['a', 'b'])"],
        ["`search.options.task`", "choice(['a', 'b'])", "set `task`"],
    ),
    "part-of-resources-in-searched-options": (
        GOOD,
        ["search.options.resources.cpu=randint(1, 3)"],
        ["`search.options.resources.cpu`", "`tune.cpu` and `tune.gpu`"],
    ),
    "searched-options-without-a-name": (GOOD, ["search.options=uniform(0, 1)"], ["`search.options`", "NAME"]),
    "part-of-a-number": (
        GOOD.replace("lr: log", "momentum.first: log"),
        [],
        ["`search.momentum.first`", "not a mapping"],
    ),
    "part-of-a-text": (
        GOOD.replace("epochs: 2", "schedule: cosine"),
        ["search.schedule.gamma=uniform(0, 1)"],
        ["`schedule`", "must be a mapping", "`schedule.gamma`", "'cosine'"],
    ),
    "part-of-an-option": (
        GOOD + "options: {width: 3}\n",
        ["search.options.width.first=uniform(0, 1)"],
        ["`options.width`", "must be a mapping", "got 3"],
    ),
    "key-and-its-part-in-search": (
        GOOD,
        ["search.options.net=choice([1])", "search.options.net.width=randint(1, 3)"],
        ["`options.net`", "`options.net.width`", "not have both"],
    ),
    "key-in-train-and-search": (
        GOOD.replace("epochs: 2", "lr: 0.1"),
        [],
        ["`lr`", "either in `train` or in `search`", "both"],
    ),
    "hyperparameter-in-train-and-search": (
        GOOD.replace("epochs: 2", "method: fixed\n  hyperparameters: {weight_decay: 0.1}"),
        ["search.hyperparameters.weight_decay=loguniform(0.01, 0.1)"],
        ["`hyperparameters.weight_decay`", "either in `train` or in `search`", "both"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_configuration_is_refused_in_one_line(case, tmp_path):
    content, overrides, words = FILES[case]
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = [word.format(path=path) if "{path}" in word else word for word in words]
    assert_refused(lambda: ExperimentConfig.read(path, overrides), ConfigError, words)


def test_good_configuration_is_accepted(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    config = ExperimentConfig.read(path, ["train.epochs=7", "tune.cpu=0.5"])
    assert config.train["epochs"] == 7
    assert config.tune.cpu == 0.5
