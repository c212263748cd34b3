"""Mistakes in configuration files show at once, in one line with the rule, the value got and its name."""

import pytest

from tests.bad_inputs.made import assert_refused

pytest.importorskip("ray")
from ray_deltastn.cli import main
from ray_deltastn.training.settings import Settings
from ray_deltastn.tune.config import ConfigError, ExperimentConfig
from ray_deltastn.tune.folder.layout import ResumeError
from ray_deltastn.tune.guards import check_free, check_same

GOOD = "task: digits-mlp\ntrain:\n  epochs: 2\nsearch:\n  lr: loguniform(0.01, 0.3)\ntune:\n  num_samples: 2\n"


FILES = {
    "misspelt-task": (GOOD.replace("task:", "tsk:"), [], ["`tsk`", "not a known key", "did you mean `task`"]),
    "misspelt-searcher": (GOOD, ["tune.searcher=bayes"], ["`tune.searcher` must be 'bo', 'random',", "got 'bayes'"]),
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
        ["`0 < low`", "'search.lr'", "low=-1"],
    ),
    "number-for-a-domain": (GOOD.replace("loguniform(0.01, 0.3)", "0.1"), [], ["`search.lr`", "0.1"]),
    "bad-train-value": (GOOD.replace("epochs: 2", "epochs: 0"), [], ["`epochs >= 1`", "epochs=0"]),
    "bad-train-schedule": (GOOD.replace("epochs: 2", "schedule: 5"), [], ["`schedule`", "5"]),
    "bad-tune-value": (GOOD.replace("samples: 2", "samples: 0"), [], ["`tune.num_samples`", "1", "got 0"]),
    "bad-searcher": (GOOD + "  searcher: gird\n", [], ["`tune.searcher`", "'bo'", "'random'", "'gird'"]),
    "missing-task": (GOOD.replace("task: digits-mlp\n", ""), [], ["`task` must be given"]),
    "section-of-a-wrong-type": (GOOD.replace("train:\n  epochs: 2", "train: 5"), [], ["`train`", "5"]),
    "list-for-a-mapping": ("- task: digits-mlp\n", [], ["{path}", "mapping", "list"]),
    "empty-file": ("", [], ["{path}", "mapping", "NoneType"]),
    "invalid-yaml": ("task: [digits\ntrain: {", [], ["{path}", "must be YAML"]),
    "invalid-characters": (b"task: \xff\xfe\n", [], ["{path}"]),
    "missing-file": (None, [], ["{path}", "readable file", "No such file"]),
    "set-without-value": (GOOD, ["train.epochs"], ["override", "`KEY=VALUE`", "'train.epochs'"]),
    "set-without-key": (GOOD, ["=5"], ["override", "`KEY=VALUE`", "'=5'"]),
    "set-unknown-key": (GOOD, ["train.epoch=5"], ["`train.epoch`", "did you mean `train.epochs`"]),
    "set-unknown-section": (GOOD, ["trian.epochs=5"], ["`trian`", "did you mean `train`"]),
    "set-misspelt-key-without-its-section": (GOOD, ["epoch=5"], ["`epoch`", "did you mean `train.epochs`"]),
    "set-key-of-two-sections": (GOOD, ["seed=5"], ["override `seed`", "`train.seed` or `tune.seed`"]),
    "file-with-a-key-outside-its-section": (
        GOOD + "epochs: 3\n",
        [],
        ["`epochs`", "not a known key", "did you mean `train.epochs`"],
    ),
    "file-with-another-name-outside-its-section": (
        GOOD + "learning_rate: 3\n",
        [],
        ["`learning_rate`", "did you mean `train.lr`"],
    ),
    "option-under-two-names": (
        GOOD,
        ["train.learning_rate=0.1", "train.lr=0.2"],
        ["`train.lr`", "given once", "`train.learning_rate`"],
    ),
    "optimizer-unknown": (GOOD, ["train.optimizer=LBFGS"], ["`optimizer`", "sgd, adam, adamw", "'LBFGS'"]),
    "set-into-a-value": (
        GOOD,
        ["train.epochs.first=5"],
        ["override `train.epochs.first`", "mapping", "int", "'epochs'"],
    ),
    "set-invalid-yaml": (GOOD, ["train.epochs=[1"], ["override `train.epochs`", "[1"]),
    "domain-without-values": (
        GOOD.replace("loguniform(0.01, 0.3)", "uniform(0.3, 0.01)"),
        [],
        ["`low < high`", "'search.lr'", "low=0.3, high=0.01"],
    ),
    "domain-with-step-zero": (
        GOOD.replace("loguniform(0.01, 0.3)", "quniform(0.1, 0.3, 0)"),
        [],
        ["`0 < q`", "'search.lr'", "q=0"],
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
    "resources-in-options": (
        GOOD,
        ["options.resources.cpu=4"],
        ["`options.resources`", "`tune.workers`, `tune.cpu` and `tune.gpu`"],
    ),
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
        ["`search.options.resources.cpu`", "`tune.workers`, `tune.cpu` and `tune.gpu`"],
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


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("epochs=3", "train", "epochs", 3),
        ("lr=1e-3", "train", "lr", 1e-3),
        ("learning_rate=1e-3", "train", "lr", 1e-3),
        ("train.learning_rate=1e-3", "train", "lr", 1e-3),
        ("num_epochs=3", "train", "epochs", 3),
        ("num_samples=5", "tune", "num_samples", 5),
        ("searcher=random", "tune", "searcher", "random"),
        ("schedule.name=cosine", "train", "schedule", {"name": "cosine"}),
        ("search.learning_rate=uniform(0.1, 0.2)", "search", "lr", "uniform(0.1, 0.2)"),
        ("optimizer=AdamW", "train", "optimizer", "AdamW"),
    ],
)
def test_a_key_of_one_section_needs_no_section_and_other_names_are_understood(tmp_path, override, section, name, value):
    path = tmp_path / "config.yaml"
    path.write_text(GOOD.replace("search:\n  lr: loguniform(0.01, 0.3)\n", ""))
    found = getattr(ExperimentConfig.read(path, [override]), section)
    found = found if isinstance(found, dict) else found.model_dump()
    assert found[name] == value
    if section == "train":
        assert "learning_rate" not in found
        Settings(**found)


@pytest.mark.parametrize(("given", "known"), [("AdamW", "adamw"), ("SGD", "sgd"), ("Adam", "adam"), ("adam", "adam")])
def test_optimizers_may_be_written_as_pytorch_does(given, known):
    settings = Settings(optimizer=given, response_optimizer=given)
    assert (settings.optimizer, settings.response_optimizer) == (known, known)
    assert Settings(hyper_optimizer="RMSprop").hyper_optimizer == "rmsprop"


def test_a_name_of_another_library_gets_the_right_hint():
    assert_refused(lambda: Settings(learning_rate=0.1), ValueError, ["'learning_rate'", "did you mean 'lr'"])


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_file_for_the_other_command_is_told_that_command(command, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    content = {"run": "trials: 3\nsingle: {lr: 0.1}\nself_tuned: {hyper_lr: 0.1}\n", "compare": "  searcher: bo\n"}
    path.write_text(GOOD.replace("tune:\n  num_samples: 2\n", "" if command == "run" else "tune:\n") + content[command])
    assert main([command, str(path), "--out", str(tmp_path / "out")]) == 1
    other = {"run": "compare", "compare": "run"}[command]
    error = capsys.readouterr().err
    assert f"use `ray-deltastn {other} {path}`" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize("content", ["notes.txt", "config.json", "results.csv", "a file"])
def test_a_folder_with_other_files_is_refused_and_stays_as_it_was(command, content, tmp_path, capsys):
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(GOOD if command == "run" else "task: digits-mlp\ntrain: {epochs: 2}\n")
    if content == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / content).write_text('{"mine": 1}')
    assert main([command, str(path), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert str(out) in error
    assert len(error.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "out"]
    assert out.is_file() or [p.name for p in out.iterdir()] == [content]


def test_hidden_files_and_what_a_refused_command_has_left_are_no_other_files(tmp_path):
    for name in (".lock", ".gitkeep", "space.json"):
        (tmp_path / name).write_text("{}")
    check_free(tmp_path)
    check_free(tmp_path / "missing")


def test_an_experiment_is_not_run_in_the_folder_of_a_comparison(tmp_path):
    (tmp_path / "comparison.json").write_text("{}")
    (tmp_path / "results.csv").write_text("")
    assert_refused(lambda: check_free(tmp_path), ResumeError, ["must not hold a comparison", str(tmp_path)])


def test_a_resume_with_other_settings_shows_what_differs_and_nothing_else():
    saved = {"task": "t", "train": {"epochs": 24, "lr": 0.1, "seed": 3}, "tune": {"cpu": 1, "gpu": 0}}
    now = {"task": "t", "train": {"epochs": 9, "lr": 0.1}, "tune": {"cpu": 1, "gpu": 0.5}}
    words = [
        "`train.epochs`",
        "got 9 instead of 24",
        "`train.seed` too, got nothing instead of 3",
        "got 0.5 instead of 0",
    ]
    error = assert_refused(lambda: check_same(now, saved, "experiment"), ResumeError, words)
    assert "lr" not in str(error)
    check_same(saved, saved, "experiment")
    check_same({"options": {"limit": float("nan")}}, {"options": {"limit": float("nan")}}, "experiment")
