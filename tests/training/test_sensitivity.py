"""What the response says: predicted validation losses against those of weights that are really displaced."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import ray_deltastn as rd
from tests.oracles import dense_weights, randomise
from tests.training.runs import make_task, make_tuner


def trained(method="delta-stn", **options):
    tuner = make_tuner(method=method, **options)
    for _ in range(2):
        tuner.step()
    if tuner.response is not None:
        with torch.no_grad():
            randomise(tuner.response)
    return tuner


def loss_at(tuner, name, offset):
    """Validation loss of the network whose weights are displaced by Θ(offset·σ e)."""
    eps = torch.zeros(len(tuner.space))
    i = tuner.space.names.index(name)
    eps[i] = offset * tuner.space.scale[i].detach()
    weights = dense_weights(tuner.model, tuner.response, eps)
    tuner.model.eval()
    x, y = tuner.task.valid
    return F.cross_entropy(functional_call(tuner.model, weights, (x,)), y).item()


def test_losses_are_those_of_displaced_weights():
    tuner = trained("centered-stn")
    table = tuner.sensitivity()
    assert set(table["hyperparameter"]) == {"first", "second", "decay"}
    for row in table.itertuples():
        assert row.loss == pytest.approx(loss_at(tuner, row.hyperparameter, row.offset), rel=1e-4)
    for _, own in table.groupby("hyperparameter"):
        middle = own[own["offset"] == 0.0].iloc[0]
        assert middle["change"] == 0.0
        assert middle["error"] == 0.0
        assert (own["loss"] - middle["loss"] - own["change"]).abs().max() < 1e-9


def test_values_are_those_of_lambda_and_stay_in_the_box():
    space = rd.HyperSpace(
        first=rd.Bounded(0.0, low=0.0, high=0.9), second=rd.Bounded(0.4, low=0.0, high=0.9), decay=rd.Positive(1e-3)
    )
    tuner = make_tuner(make_task(space=space), warmup_steps=100)
    table = tuner.sensitivity()
    assert table.loc[table["hyperparameter"] == "first", "offset"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    for row in table.itertuples():
        i = space.names.index(row.hyperparameter)
        lam = space.lam.detach().clone()
        lam[i] += row.offset * space.scale[i].detach()
        assert row.value == pytest.approx(space.values(lam)[i].item())


def test_the_error_is_that_of_the_mean_over_parts_of_the_data():
    tuner = trained("centered-stn")
    row = tuner.sensitivity().iloc[0]
    x, y = tuner.task.valid
    whole = tuner.task.valid
    changes = []
    for part, target in zip(x.tensor_split(20), y.tensor_split(20), strict=True):
        tuner.task.valid = part, target
        changes.append(
            loss_at(tuner, row["hyperparameter"], row["offset"]) - loss_at(tuner, row["hyperparameter"], 0.0)
        )
    tuner.task.valid = whole
    assert row["error"] == pytest.approx(torch.tensor(changes).std().item() / 20**0.5, rel=1e-3)


@pytest.mark.parametrize("count", [1, 12, 39, 40, 1000])
def test_some_of_the_examples_give_the_losses_on_these_examples(count):
    tuner = trained("centered-stn")
    table = tuner.sensitivity(examples=count)
    x, y = tuner.task.valid
    tuner.task.valid = x[:count], y[:count]
    for row in table.itertuples():
        assert row.loss == pytest.approx(loss_at(tuner, row.hyperparameter, row.offset), rel=1e-4)


def test_looking_changes_nothing_and_the_prediction_is_that_of_the_hyper_pass():
    tuner, other = trained(), trained()
    tuner.sensitivity()
    assert tuner.model.training == other.model.training
    one, two = tuner.step(), other.step()
    assert one["train_loss"] == two["train_loss"]
    linearised = trained(hyper_pass="linearized").sensitivity()
    assert (linearised["loss"] - other.sensitivity()["loss"]).abs().max() > 1e-6


def test_a_method_without_response_is_refused():
    with pytest.raises(ValueError, match="learns a response"):
        trained("fixed").sensitivity()
