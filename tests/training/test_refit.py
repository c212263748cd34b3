"""The schedule that a run has found, and the plain network trained again with it."""

import json
import math

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

import ray_deltastn as rd
from ray_deltastn.training.in_force import final_values, stretched
from ray_deltastn.training.refit import constants_of, joined
from ray_deltastn.training.schedule import replayed
from tests.tune import tiny

OPTIONS = {"epochs": 6, "batch_size": 16, "lr": 0.1, "seed": 3}
TUNED = {**OPTIONS, "warmup": 1, "hyper_lr": 0.2, "train_interval": 3}
WITHOUT_EPOCHS = {name: value for name, value in TUNED.items() if name != "epochs"}


def build(config):
    torch.manual_seed(11)
    return tiny.build(config)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- the schedule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps_per_report", [None, 1, 7])
def test_a_row_is_the_mean_of_lambda_over_the_train_steps_of_its_epoch(steps_per_report, monkeypatch):
    tuner = rd.SelfTuner(build({}), **TUNED, steps_per_report=steps_per_report)
    seen = []
    step = type(tuner.algorithm).train_step

    def spied(self, x, y):
        seen.append(tuner.space.lam.detach().clone())
        return step(self, x, y)

    monkeypatch.setattr(type(tuner.algorithm), "train_step", spied)
    for _ in tuner.fit():
        pass
    in_epochs = torch.stack(seen).double().view(6, 4, -1).mean(1)
    assert in_epochs.diff(dim=0).abs().max() > 0.1
    expected = tuner.space.values(in_epochs)
    assert torch.allclose(torch.tensor(tuner.schedule().to_numpy()), expected, rtol=1e-6)
    assert list(tuner.schedule().columns) == ["dropout", "decay"]
    assert list(tuner.schedule().index) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("method", ["delta-stn", "fixed"])
def test_a_resumed_run_has_the_same_schedule(method):
    options = TUNED if method == "delta-stn" else {**OPTIONS, "hyperparameters": {"dropout": [0.1, 0.4]}}
    whole, first, second = (rd.SelfTuner(build({}), method, **options, steps_per_report=3) for _ in range(3))
    for _ in whole.fit():
        pass
    for _ in range(3):
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in second.fit():
        pass
    pd.testing.assert_frame_equal(second.schedule(), whole.schedule(), check_exact=True)


def test_the_schedule_of_constants_is_the_constants():
    tuner = rd.SelfTuner(build({}), "fixed", **OPTIONS, hyperparameters={"dropout": [0.1, 0.2, 0.3]})
    for _ in tuner.fit():
        pass
    assert tuner.schedule()["dropout"].tolist() == [0.1, 0.2, 0.3, 0.3, 0.3, 0.3]
    assert tuner.schedule()["decay"].tolist() == [1e-3] * 6


def test_a_schedule_without_an_epoch_is_empty():
    assert rd.SelfTuner(build({}), **TUNED).schedule().shape == (0, 2)


def test_final_values_are_means_over_the_last_fifth():
    space = rd.HyperSpace(
        rate=rd.Bounded(0.1, low=0.0, high=1.0), decay=rd.Positive(1.0), holes=rd.Integer(1, low=0, high=4)
    )
    table = pd.DataFrame({"rate": [0.9] * 8 + [0.2, 0.4], "decay": [5.0] * 8 + [1e-4, 1e-2], "holes": [0] * 8 + [3, 4]})
    assert final_values(table, space) == pytest.approx({"rate": 0.3, "decay": 1e-3, "holes": 4.0})
    with pytest.raises(ValueError, match="at least one epoch"):
        final_values(table[:0], space)


def test_a_schedule_is_stretched_or_compressed_to_another_number_of_epochs():
    table = pd.DataFrame({"rate": [0.1, 0.2, 0.3, 0.4]}, index=pd.RangeIndex(1, 5, name="epoch"))
    assert stretched(table, 2)["rate"].tolist() == [0.2, 0.4]
    assert stretched(table, 8)["rate"].tolist() == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4]
    assert list(stretched(table, 3).index) == [1, 2, 3]
    pd.testing.assert_frame_equal(stretched(table, 4), table)
    found = pd.DataFrame({"dropout": [0.1, 0.3], "decay": [0.01, 0.01]})
    replayed = rd.refit(build({}), found, **OPTIONS)
    assert same(replayed, rd.refit(build({}), {"dropout": [0.1] * 3 + [0.3] * 3, "decay": 0.01}, **OPTIONS))


# --- training again ------------------------------------------------------------------------------------------------


def test_a_refit_on_training_data_is_the_run_with_these_constants():
    table = {"dropout": [0.1, 0.3, 0.5, 0.2, 0.1, 0.4], "decay": 0.01}
    tuner = rd.SelfTuner(build({}), "fixed", **OPTIONS, hyperparameters=table)
    for _ in tuner.fit():
        pass
    assert same(rd.refit(build({}), table, data="train", **OPTIONS), tuner.export())


def test_a_refit_sees_the_validation_data_too():
    both = build({})
    x, y = torch.cat([both.train[0], both.valid[0]]), torch.cat([both.train[1], both.valid[1]])
    both.train = (x, y)
    tuner = rd.SelfTuner(both, "fixed", **OPTIONS, hyperparameters={"dropout": 0.3})
    for _ in tuner.fit():
        pass
    assert same(rd.refit(build({}), {"dropout": 0.3}, **OPTIONS), tuner.export())


def test_a_found_schedule_is_replayed_or_its_last_values_are_taken():
    tuner = rd.SelfTuner(build({}), **TUNED)
    for _ in tuner.fit():
        pass
    found = tuner.schedule()

    replayed = rd.refit(build({}), found, **WITHOUT_EPOCHS)
    assert same(replayed, rd.refit(build({}), found.to_dict("list"), **WITHOUT_EPOCHS))
    last = rd.refit(build({}), found, use="final", **WITHOUT_EPOCHS)
    assert same(last, rd.refit(build({}), final_values(found, tuner.space), **TUNED))
    assert not same(last, replayed)


def test_a_stopped_refit_goes_on_to_the_bit_and_leaves_the_network_and_the_schedule(tmp_path):
    class StopError(Exception):
        pass

    def stop(report):
        if report["epoch"] == 3:
            raise StopError

    found = {"dropout": [0.1, 0.3, 0.5, 0.2, 0.1, 0.4]}
    whole = rd.refit(build({}), found, **OPTIONS)
    with pytest.raises(StopError):
        rd.refit(build({}), found, folder=tmp_path, on_report=stop, **OPTIONS)
    epochs = []
    with pytest.raises(ValueError, match="a run with these hyperparameters"):
        rd.refit(build({}), {"dropout": 0.3}, folder=tmp_path, **OPTIONS)
    again = rd.refit(build({}), found, folder=tmp_path, on_report=lambda r: epochs.append(r["epoch"]), **OPTIONS)
    assert epochs == [4, 5, 6]
    assert same(again, whole)
    assert same(torch.load(tmp_path / "model.pt", weights_only=True), whole)
    assert json.loads((tmp_path / "schedule.json").read_text()) == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "schedule.json"]


def loader(**options):
    task = build({})
    return DataLoader(TensorDataset(*task.train), batch_size=16, **options), TensorDataset(*task.valid)


def test_loaders_are_joined_with_the_options_of_the_first():
    generator = torch.Generator().manual_seed(5)
    train, valid = loader(shuffle=True, drop_last=True, generator=generator)
    assert joined(train, valid).generator is generator
    both = joined(train, valid)
    assert len(both.dataset) == 80
    assert both.drop_last
    assert isinstance(both.sampler, torch.utils.data.RandomSampler)
    assert isinstance(joined(loader()[0], DataLoader(valid)).sampler, torch.utils.data.SequentialSampler)
    assert len(joined(build({}).train, DataLoader(valid))) == 80


def test_data_that_cannot_be_joined_are_refused():
    train, valid = loader(sampler=WeightedRandomSampler(torch.ones(64), 64))
    with pytest.raises(ValueError, match=r"`data` must be 'train'.*WeightedRandomSampler"):
        joined(train, valid)

    class Endless(IterableDataset):
        def __iter__(self):
            yield from ()

    with pytest.raises(ValueError, match="iterable data set"):
        joined(Endless(), valid)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"use": "last"}, r"`use` must be one of schedule, final, got 'last'"),
        ({"data": "all"}, r"`data` must be one of train\+valid, train, got 'all'"),
        ({"method": "stn"}, "`refit` decides `method`, got 'stn'"),
        ({"patience": 3}, "`patience` needs validation data"),
        ({"schedule": "plateau"}, "`schedule: plateau` needs validation data"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": None}, "`epochs` must be given with constants"),
    ],
)
def test_wrong_options_are_refused(changes, rule):
    options = {name: value for name, value in {**OPTIONS, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=rule):
        rd.refit(build({}), {"dropout": 0.2}, **options)


def test_unknown_hyperparameters_and_a_diverged_run_are_refused():
    with pytest.raises(ValueError, match=r"`schedule` names the unknown hyperparameter 'rate'"):
        constants_of({"rate": 0.1}, build({}), "schedule")
    with pytest.raises(ValueError, match="must not diverge"):
        rd.refit(build({"fault": "nan"}), {"dropout": 0.2}, **{**OPTIONS, "epochs": 12})
    assert math.isfinite(sum(v.sum().item() for v in rd.refit(build({}), {"dropout": 0.2}, **OPTIONS).values()))


@pytest.mark.parametrize("steps_per_report", [None, 1, 3, 9], ids=lambda n: f"reports of {n} steps")
def test_falls_of_a_plateau_are_replayed_without_validation_data(steps_per_report):
    plateau = {"name": "plateau", "factor": 0.25, "patience": 0, "threshold": 0.2}
    options = {**OPTIONS, "epochs": 9, "hyperparameters": {"dropout": 0.2}}
    tuner = rd.SelfTuner(build({}), "fixed", **options, schedule=plateau, steps_per_report=steps_per_report)
    rates = {0: 0.1, **{report["epoch"]: report["lr"] for report in tuner.fit()}}
    assert len(set(rates.values())) > 2
    again = rd.SelfTuner(
        build({}), "fixed", **options, schedule=replayed(plateau, rates), steps_per_report=steps_per_report
    )
    found = {0: 0.1, **{report["epoch"]: report["lr"] for report in again.fit()}}
    assert found == pytest.approx(rates, rel=1e-9)


@pytest.mark.parametrize("given", [None, "cosine", {"name": "step", "step_size": 2}])
def test_other_schedules_are_replayed_as_they_are(given):
    assert replayed(given, {0: 0.1, 1: 0.05}) == given
