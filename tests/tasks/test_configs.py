"""The files in `configs/` are valid, and the files of the paper's experiments have the paper's settings (H.2)."""

from pathlib import Path

import pytest
import yaml

pytest.importorskip("ray")

from ray_deltastn.compare.plan import CompareConfig
from ray_deltastn.tasks import READY, images
from ray_deltastn.training.presets import PRESETS
from ray_deltastn.training.settings import Settings
from ray_deltastn.tune.config import ExperimentConfig
from ray_deltastn.tune.experiment import check_task
from tests.tasks import grammar
from tests.tasks.image_examples import COUNTS, made_up

FOLDER = Path(__file__).parents[2] / "configs"
PAPER = {
    # file: (task, epochs, lr, entropy weight, schedule)
    "mnist_mlp": ("mnist-mlp", 300, 0.01, 1e-3, None),
    "fashion_cnn": ("fashion-cnn", 300, 0.01, 1e-3, None),
    "cifar10_alexnet": ("cifar10-alexnet", 200, 0.03, 1e-3, (60, 0.2)),
    "cifar10_vgg16": ("cifar10-vgg16", 200, 0.01, 1e-4, (60, 0.2)),
    "cifar10_resnet18": ("cifar10-resnet18", 200, 0.05, 1e-4, (60, 0.2)),
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_is_read_and_names_a_ready_task(path):
    config = (CompareConfig if path.stem.endswith("_compare") else ExperimentConfig).read(path)
    assert config.task in READY
    assert config.param_space()["task"] == config.task


@pytest.mark.parametrize("name", PAPER)
def test_settings_equal_those_of_the_paper(name):
    task, epochs, lr, entropy_weight, schedule = PAPER[name]
    config = ExperimentConfig.read(FOLDER / f"{name}.yaml")
    settings = Settings(**config.train)
    assert config.task == task
    assert (settings.epochs, settings.lr, settings.entropy_weight) == (epochs, lr, entropy_weight)
    assert (settings.method, settings.optimizer, settings.momentum) == ("delta-stn", "sgd", 0.9)
    assert (settings.batch_size, settings.warmup, settings.weight_decay) == (128, 5, 0.0)
    assert (settings.hyper_optimizer, settings.hyper_lr, settings.tune_scale) == ("rmsprop", 0.01, True)
    assert (settings.train_interval, settings.valid_interval, settings.response_fraction) == (5, 1, 1.0)
    if schedule is None:
        assert settings.schedule is None
    else:
        assert settings.schedule == {"name": "step", "step_size": schedule[0], "gamma": schedule[1]}
    assert config.tune.num_samples == 5  # runs


@pytest.mark.parametrize("name", PAPER)
def test_another_preset_replaces_all_options_of_the_paper_preset(name):
    config = ExperimentConfig.read(FOLDER / f"{name}.yaml", ["train.preset=recommended"])
    found, recommended = Settings(**config.train), Settings(preset="recommended")
    for option in PRESETS["recommended"]:
        assert getattr(found, option) == getattr(recommended, option), option


@pytest.mark.parametrize("name", PAPER)
def test_tasks_take_the_options_of_their_configuration(name, monkeypatch):
    monkeypatch.setattr(images, "load_images", lambda *_: (made_up(PAPER[name][0], 20), made_up(PAPER[name][0], 5)))
    space = check_task(ExperimentConfig.read(FOLDER / f"{name}.yaml")).space
    assert len(space) == COUNTS[PAPER[name][0]]
    with pytest.raises(
        ValueError, match=r"`options\.split_sed` is not a known key; did you mean `options\.split_seed`"
    ):
        check_task(ExperimentConfig.read(FOLDER / f"{name}.yaml", ["options.split_sed=3"]))


@pytest.mark.parametrize("name", PAPER)
def test_options_are_plain_values(name):
    options = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["options"]
    assert set(options) <= {"data_root", "split_seed", "images", "flip", "initial_values"}


def test_the_language_model_has_the_settings_of_the_paper(tmp_path):
    config = ExperimentConfig.read(FOLDER / "ptb_lstm.yaml", [f"options.path={grammar.folder(tmp_path)}"])
    settings = Settings(**config.train)
    options = {name: config.options[name] for name in ("units", "embedding", "layers", "batch", "length")}
    assert options == {"units": 650, "embedding": 650, "layers": 2, "batch": 40, "length": 70}
    assert (settings.lr, settings.min_lr, settings.clip_grad, settings.momentum) == (30.0, 3e-4, 0.25, 0.0)
    assert settings.schedule == {"name": "plateau", "factor": 0.25, "patience": 4}
    assert (settings.hyper_optimizer, settings.hyper_lr, settings.tune_scale) == ("adam", 0.01, False)
    assert (settings.warmup, config.options["perturbation_scale"]) == (10, 1.0)


def test_the_marked_lines_are_those_that_differ_from_the_recommended_language_model(tmp_path):
    text = (FOLDER / "ptb_lstm.yaml").read_text()
    assert text.count("(*)") == 6  # with the explanation
    kept = "\n".join(line for line in text.splitlines() if "(*)" not in line or "preset:" in line)
    (tmp_path / "other.yaml").write_text(kept.replace("preset: paper", "preset: recommended"))
    config = ExperimentConfig.read(tmp_path / "other.yaml")
    found, recommended = Settings(**config.train), Settings(preset="recommended")
    for option in PRESETS["recommended"]:
        assert getattr(found, option) == getattr(recommended, option), option
    assert "perturbation_scale" not in config.options
    assert found.schedule == ExperimentConfig.read(FOLDER / "ptb_lstm.yaml").train["schedule"]


def test_options_that_a_ready_task_does_not_read_are_refused(tmp_path):
    small = [f"options.path={grammar.folder(tmp_path)}", *(f"options.{n}=4" for n in ("units", "embedding", "batch"))]
    config = ExperimentConfig.read(FOLDER / "ptb_lstm.yaml", [*small, "options.length=5", "options.limt=30"])
    with pytest.raises(ValueError, match=r"`options\.limt` is not a known key; did you mean `options\.limit`"):
        check_task(config)
    config = ExperimentConfig.read(FOLDER / "ptb_lstm.yaml", [*small, "options.length=5", "options.heads=2"])
    with pytest.raises(ValueError, match=r"`options\.heads` is not an option of ptb-lstm; known are batch, .*, untied"):
        check_task(config)


@pytest.mark.parametrize("name", ["cifar10_resnet18", "cifar10_resnet18_compare"])
def test_batch_normalisation_of_resnet_has_sub_batches(name):
    kind = CompareConfig if name.endswith("compare") else ExperimentConfig
    config = kind.read(FOLDER / f"{name}.yaml")
    settings = Settings(**{**config.train, **getattr(config, "self_tuned", {})})
    assert settings.parts(statistics=True) == 8
