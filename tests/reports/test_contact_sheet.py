"""Contact sheets draw the hyperparameters that act on images, at the right values, and do not change the task."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from torch import nn

import ray_deltastn as rd
from ray_deltastn.regularizers import PassValues
from ray_deltastn.reports.contact_sheet import actors, contact_sheet, levels
from ray_deltastn.tasks.networks import Normalize


def small_task(**changes):
    data = (torch.rand(8, 3, 12, 12), torch.randint(0, 2, (8,)))
    parts = {
        "space": rd.HyperSpace(
            holes=rd.Integer(1, low=0, high=3),
            length=rd.Integer(4, low=0, high=8),
            hue=rd.Bounded(0.05, low=0.0, high=0.5),
            noise=rd.Positive(0.1, search=(0.01, 1.0)),
            drop=rd.Bounded(0.05, low=0.0, high=0.9),
            later=rd.Bounded(0.05, low=0.0, high=0.9),
        ),
        "model": nn.Sequential(
            Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
            nn.Flatten(),
            rd.Dropout("drop"),
            nn.Linear(432, 4),
            nn.ReLU(),
            rd.Dropout("later"),
            nn.Linear(4, 2),
        ),
        "augment": [rd.ColorJitter(hue="hue"), rd.GaussianNoise("noise"), rd.Cutout("holes", "length")],
        "loss": F.cross_entropy,
        "train": data,
        "valid": data,
    }
    return rd.Task(**{**parts, **changes})


def test_hyperparameters_that_act_on_images_are_drawn():
    assert [names for names, _ in actors(small_task())] == [("hue",), ("noise",), ("holes", "length"), ("drop",)]


def test_levels_are_ends_and_middle_of_the_range():
    space = small_task().space
    assert levels(space, "hue") == (0.0, 0.25, 0.5)
    assert levels(space, "holes") == (0, 2, 3)
    assert levels(space, "noise") == (0.01, pytest.approx(0.1), 1.0)


def test_dropout_on_normalised_images_is_drawn_as_images():
    task = small_task()
    drop = dict(actors(task))[("drop",)]
    x = task.train[0]

    def at(p):
        pass_values = PassValues(task.space, torch.Generator().manual_seed(0))
        pass_values.values = {"drop": torch.tensor(p)}
        return drop(x, pass_values)

    torch.testing.assert_close(at(0.0), x, rtol=0, atol=1e-6)
    mean = torch.tensor((0.4, 0.5, 0.6)).view(3, 1, 1).expand_as(x)
    dropped = (at(0.5) - mean).abs() < 1e-6
    assert abs(dropped.float().mean() - 0.5) < 0.06
    torch.testing.assert_close((at(0.5) - mean)[~dropped], 2 * (x - mean)[~dropped], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_row_per_hyperparameter_is_written(channels, tmp_path):
    drop = rd.HyperSpace(drop=rd.Bounded(0.05, low=0.0, high=0.9), noise=rd.Bounded(0.05, low=0.0, high=0.9))
    images = (torch.randint(0, 256, (8, channels, 12, 12), dtype=torch.uint8), torch.zeros(8, dtype=torch.long))
    task = rd.Task(
        space=drop,
        model=nn.Sequential(Normalize((0.5,), (0.5,)), rd.Dropout("drop"), nn.Flatten(), nn.Linear(144 * channels, 2)),
        augment=rd.GaussianNoise("noise"),
        loss=F.cross_entropy,
        train=images,
        valid=images,
    )
    two = imread(contact_sheet(task, tmp_path / "two.png"))
    five = imread(contact_sheet(small_task(), tmp_path / "five.png"))
    assert two.std() > 0.1
    assert five.shape[0] > 2 * two.shape[0]  # five rows and two rows


def strips_of(monkeypatch, task, path):
    """The drawn images, row by row."""
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda axis, strip, **_: drawn.append(strip))
    contact_sheet(task, path)
    return [drawn[start : start + 3] for start in range(0, len(drawn), 3)]


def test_the_three_levels_of_every_row_differ(tmp_path, monkeypatch):
    rows = strips_of(monkeypatch, small_task(), tmp_path / "sheet.png")
    assert len(rows) == sum(len(names) for names, _ in actors(small_task()))
    for low, mid, high in rows:
        assert (low != mid).any()
        assert (mid != high).any()
        assert (low != high).any()


def test_standardised_images_keep_their_contrast(tmp_path, monkeypatch):
    images = torch.linspace(-2.0, 3.0, 8 * 16).view(8, 1, 4, 4), torch.zeros(8, dtype=torch.long)
    space = rd.HyperSpace(noise=rd.Bounded(0.05, low=0.0, high=0.9))
    task = rd.Task(
        space=space,
        model=nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
        augment=rd.GaussianNoise("noise"),
        loss=F.cross_entropy,
        train=images,
        valid=images,
    )
    ((plain, _, _),) = strips_of(monkeypatch, task, tmp_path / "sheet.png")
    assert (plain.min(), plain.max()) == (0.0, 1.0)
    assert len(set(plain.flatten().tolist())) == 6 * 16


def test_a_task_that_a_tuner_uses_is_not_changed(tmp_path):
    task = small_task()
    tuner = rd.SelfTuner(task, epochs=1, batch_size=4, device="cpu")
    before = tuner.generator.get_state()
    contact_sheet(task, tmp_path / "sheet.png", examples=2)
    assert torch.equal(tuner.generator.get_state(), before)
    assert all(r._pass_values is tuner.pass_values for r in task.regularizers)
    tuner.step()


def test_a_task_without_images_or_augmentation_is_refused(tmp_path):
    flat = (torch.rand(8, 4), torch.zeros(8, dtype=torch.long))
    space = rd.HyperSpace(later=rd.Bounded(0.1, low=0.0, high=0.9))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), rd.Dropout("later"), nn.Linear(4, 2))
    task = rd.Task(space=space, model=model, loss=F.cross_entropy, train=flat, valid=flat)
    with pytest.raises(ValueError, match=r"`task.train` must hold images .*, got a batch of shape \(8, 4\)"):
        contact_sheet(task, tmp_path / "sheet.png")
    images = (flat[0].view(8, 1, 2, 2), flat[1])
    task = rd.Task(space=space, model=model, loss=F.cross_entropy, train=images, valid=images)
    with pytest.raises(ValueError, match=r"`task.space` must hold a hyperparameter .*, got only \('later',\)"):
        contact_sheet(task, tmp_path / "sheet.png")


def test_report_of_an_image_task_has_the_sheet(tmp_path):
    pytest.importorskip("ray")
    from ray_deltastn.reports.experiment import SHEET, draw_augmentation

    config = {"task": "digits-mlp", "options": {"width": 8}, "train": {"lr": 0.1}}
    draw_augmentation(SimpleNamespace(config=config, folder=tmp_path))
    assert (tmp_path / SHEET).read_bytes().startswith(b"\x89PNG")


def test_report_is_written_without_the_sheet_if_the_data_are_missing(tmp_path, caplog):
    pytest.importorskip("ray")
    from ray_deltastn.reports.experiment import SHEET, draw_augmentation

    config = {"task": "fashion-cnn", "options": {"data_root": str(tmp_path)}, "train": {}}
    draw_augmentation(SimpleNamespace(config=config, folder=tmp_path))
    assert not (tmp_path / SHEET).exists()
    assert "the augmentation picture could not be drawn: `fashion_mnist` must be under `data_root`" in caplog.text
