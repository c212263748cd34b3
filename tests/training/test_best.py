"""The number that a run shows as its best has its network: in memory, in states, and in what is read from them."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from tests.tune.tiny import build

OPTIONS = {"epochs": 12, "batch_size": 16, "lr": 0.5, "warmup": 1, "hyper_lr": 0.1, "seed": 3}
METHODS = ("fixed", "stn", "centered-stn", "delta-stn")


def finished(method="delta-stn", **options):
    torch.manual_seed(0)
    tuner = rd.SelfTuner(build({}), method, **{**OPTIONS, **options})
    reports = list(tuner.fit())
    return tuner, reports


def loss_of(weights, split="valid"):
    """Loss of a plain network with these weights."""
    task = build({})
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Identity(), nn.Linear(8, 3))
    model.load_state_dict(weights)
    x, y = getattr(task, split)
    with torch.no_grad():
        return F.cross_entropy(model(x), y).item()


@pytest.mark.parametrize("method", ["fixed", "delta-stn"])
def test_the_schedule_up_to_the_best_epoch(method, tmp_path):
    tuner, reports = finished(method)
    losses = [report["valid_loss"] for report in reports]
    best = losses.index(min(losses)) + 1
    assert best < len(losses), "the run must over-fit for this test"
    assert tuner.schedule(best=True).equals(tuner.schedule().loc[:best])
    assert rd.load_schedule(tuner.state_dict(), best=True).equals(tuner.schedule(best=True))
    (tmp_path / "schedule.json").write_text('{"dropout": [0.1, 0.2]}')
    with pytest.raises(ValueError, match=r"needs a checkpoint or a state, got .* only schedule\.json"):
        rd.load_schedule(tmp_path, best=True)


def test_a_schedule_up_to_the_best_epoch_needs_a_report_and_has_at_least_one_epoch():
    torch.manual_seed(0)
    tuner = rd.SelfTuner(build({}), **OPTIONS, steps_per_report=1)
    for asked in (lambda: tuner.schedule(best=True), lambda: rd.load_schedule(tuner.state_dict(), best=True)):
        with pytest.raises(ValueError, match="`best=True` needs a report with a finite `valid_loss`, got none"):
            asked()
    while tuner.epoch < 1:
        tuner.step()
    tuner.best.report["epoch"] = 0  # in the middle of the first epoch
    assert len(tuner.schedule(best=True)) == len(rd.load_schedule(tuner.state_dict(), best=True)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_best_network_has_the_best_loss_that_was_reported(method):
    tuner, reports = finished(method)
    losses = [report["valid_loss"] for report in reports]
    assert losses[-1] > min(losses), "the run must over-fit for this test"
    assert loss_of(tuner.export(best=True)) == pytest.approx(min(losses), rel=1e-6)
    assert loss_of(tuner.export()) == pytest.approx(losses[-1], rel=1e-6)
    assert tuner.best.report == reports[losses.index(min(losses))]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_stops_for_lack_of_patience_still_has_its_best_network(method):
    tuner, reports = finished(method, patience=2)
    assert loss_of(tuner.export(best=True)) == pytest.approx(tuner.best_valid_loss, rel=1e-6)
    assert reports[-1]["best_valid_loss"] == tuner.best_valid_loss < reports[-1]["valid_loss"]


def test_a_resumed_run_keeps_its_best_network():
    tuner, reports = finished()
    best = [report["valid_loss"] for report in reports].index(tuner.best_valid_loss)
    torch.manual_seed(0)
    half = rd.SelfTuner(build({}), **OPTIONS)
    for _ in range(best + 2):
        half.step()
    resumed = rd.SelfTuner(build({}), **OPTIONS)
    resumed.load_state_dict(half.state_dict())
    list(resumed.fit())
    assert {k: v for k, v in resumed.best.report.items() if "seconds" not in k} == {
        k: v for k, v in tuner.best.report.items() if "seconds" not in k
    }
    for name, weight in tuner.export(best=True).items():
        assert torch.equal(resumed.export(best=True)[name], weight)


def test_another_number_may_decide():
    tuner, reports = finished(monitor="test_accuracy", monitor_mode="max")
    assert tuner.best.report["test_accuracy"] == max(report["test_accuracy"] for report in reports)
    assert loss_of(tuner.export(best=True), "test") == pytest.approx(tuner.best.report["test_loss"], rel=1e-6)


def test_an_unknown_number_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`monitor` must be one of .*valid_loss.*, got 'f1'"):
        rd.SelfTuner(build({}), **OPTIONS, monitor="f1", monitor_mode="max")


def test_a_number_that_is_no_loss_needs_a_mode():
    with pytest.raises(ValueError, match="`monitor_mode` must be min or max if `monitor` is no loss, got none for"):
        rd.SelfTuner(build({}), **OPTIONS, monitor="valid_accuracy")


def test_a_state_that_was_kept_by_another_number_starts_anew():
    tuner, _ = finished(monitor="valid_accuracy", monitor_mode="max")
    for other in ({"monitor": "valid_accuracy", "monitor_mode": "min"}, {}):
        heir = rd.SelfTuner(build({}), **OPTIONS, **other)
        heir.load_state_dict(tuner.state_dict())
        assert heir.best.report == {}


def test_a_run_without_a_finite_loss_has_no_best_network():
    tuner = rd.SelfTuner(build({}), **OPTIONS)
    with pytest.raises(ValueError, match=r"`export\(best=True\)` needs a report with a finite `valid_loss`, got none"):
        tuner.export(best=True)
    with pytest.raises(ValueError, match="must have a report with a finite loss"):
        rd.load_weights(tuner.state_dict())
    assert tuner.best.value == math.inf


def test_the_best_network_is_a_copy():
    tuner, _ = finished()
    first = tuner.export(best=True)
    for weight in first.values():
        weight.zero_()
    assert loss_of(tuner.export(best=True)) == pytest.approx(tuner.best_valid_loss, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_weights_and_schedule_are_read_from_every_source(method, tmp_path):
    tuner, _ = finished(method)
    torch.save(tuner.state_dict(), tmp_path / "deltastn.pt")
    checkpoint = SimpleNamespace(as_directory=lambda: contextlib.nullcontext(str(tmp_path)))
    for source in (
        tuner.state_dict(),
        tmp_path,
        str(tmp_path / "deltastn.pt"),
        checkpoint,
        SimpleNamespace(checkpoint=checkpoint),
    ):
        assert loss_of(rd.load_weights(source)) == pytest.approx(tuner.best_valid_loss, rel=1e-6)
        assert rd.load_schedule(source).equals(tuner.schedule())


def test_the_result_of_a_refit_is_read_from_its_folder(tmp_path):
    tuner, _ = finished()
    weights = rd.refit(build({}), tuner.schedule(), lr=0.05, batch_size=16, folder=tmp_path)
    assert all(torch.equal(weights[name], weight) for name, weight in rd.load_weights(tmp_path).items())
    assert rd.load_schedule(tmp_path).equals(tuner.schedule())


@pytest.mark.parametrize(
    ("source", "kind", "reason"),
    [
        (3, TypeError, "got int"),
        ({"model": {}}, ValueError, "got model"),
        ("no-such-file.pt", ValueError, r"got no file no-such-file\.pt"),
        ({f"layer{i}": {} for i in range(9)}, ValueError, r"got layer0, layer1, layer2, layer3, layer4, …"),
        (SimpleNamespace(checkpoint=None), ValueError, "got a result without one; set `checkpoint_at_end=True`"),
    ],
)
def test_other_sources_are_refused_in_one_line(source, kind, reason):
    for read in (rd.load_weights, rd.load_schedule):
        with pytest.raises(kind, match=rf"`source` must .*{reason}") as caught:
            read(source)
        assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused_with_its_name(tmp_path):
    (tmp_path / "deltastn.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"deltastn\.pt` must be a readable state, got: "):
        rd.load_weights(tmp_path)


def test_a_network_is_a_source_too(tmp_path):
    tuner, _ = finished()
    weights = tuner.export(best=True)
    torch.save(weights, tmp_path / "model.pt")
    for source in (weights, tmp_path / "model.pt", tmp_path):
        assert all(torch.equal(weights[name], weight) for name, weight in rd.load_weights(source).items())


def test_the_schedule_of_constants_has_a_row_for_each_epoch(tmp_path):
    rd.refit(build({}), {"dropout": 0.3, "decay": 1e-3}, epochs=5, lr=0.05, folder=tmp_path)
    assert rd.load_schedule(tmp_path)["dropout"].tolist() == [0.3] * 5
