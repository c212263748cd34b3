"""Data, a model and a loss that do not fit together: one line says which of them is at fault, and in which split."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ray_deltastn as rd
from tests.bad_inputs.made import PAIR, X, Y, assert_refused, model, space, task, tuner

#: Data of one split: what is wrong with it, and the words of the error.
DATA = {
    "float64-inputs": ((X.double(), Y), ["inputs of the type of the model, float32, got float64", "data", "model"]),
    "float16-inputs": ((X.half(), Y), ["inputs of the type of the model, float32, got float16"]),
    "integer-inputs": (((10 * X).long(), Y), ["inputs of the type of the model, float32, got int64", "data"]),
    "byte-inputs": (((10 * X).byte(), Y), ["inputs of the type of the model, float32, got uint8"]),
    "boolean-inputs": ((X > 0, Y), ["inputs of the type of the model, float32, got bool"]),
    "inputs-of-another-width": ((X[:, :3], Y), ["`model` must accept the inputs", "float32 (4, 3)", "'0' (Linear)"]),
    "int32-targets": ((X, Y.int()), ["targets of type int64 for `loss`, got int32"]),
    "float-targets": ((X, Y.float()), ["targets of type int64 for `loss`, got float32"]),
    "targets-of-another-shape": ((X, Y[:, None]), ["`loss` must accept", "float32 (4, 3)", "int64 (4, 1)"]),
    "targets-out-of-range": ((X, Y + 7), ["`loss` must accept", "out of bounds"]),
}
#: What the look at the training data cannot see: their types and shapes are those of the validation data.
ALIKE = {"targets-out-of-range"}


@pytest.mark.parametrize("splits", [("train",), ("valid",), ("train", "valid")], ids="+".join)
@pytest.mark.parametrize("method", ["delta-stn", "fixed"])
@pytest.mark.parametrize("case", DATA)
def test_data_that_do_not_fit_are_refused_in_one_line(case, method, splits):
    data, words = DATA[case]
    if splits == ("train",) and case in ALIKE:
        pytest.skip("only the numbers differ")
    split = "valid" if "valid" in splits else "train"
    assert_refused(lambda: tuner(method, changes=dict.fromkeys(splits, data)), ValueError, [f"`{split}`", *words])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_is_looked_at_too(workers):
    loader = DataLoader(TensorDataset(X.double(), Y), batch_size=8, num_workers=workers)
    assert_refused(lambda: tuner(changes={"train": loader}), ValueError, ["`train`", "got float64"])


def test_a_double_model_with_single_data_is_told_the_same():
    assert_refused(
        lambda: tuner(changes={"model": model().double()}), ValueError, ["float64, got float32", "`model.to("]
    )


def test_a_model_that_converts_its_inputs_is_accepted():
    class Converts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model()

        def forward(self, x):
            return self.inner(x.float())

    tuner(changes={"model": Converts(), "train": (X.double(), Y)})
    tuner(changes={"model": Converts(), "train": ((X * 10).long(), Y), "valid": (X.double(), Y)})


def test_token_ids_are_accepted():
    tokens = torch.randint(0, 9, (24, 6))
    network = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), rd.Dropout("rate"), nn.Linear(24, 3))
    tuner(changes={"model": network, "train": (tokens, Y), "valid": (tokens, Y)})
    assert_refused(
        lambda: tuner(changes={"model": network, "train": (tokens, Y), "valid": (tokens + 9, Y)}),
        ValueError,
        ["`model` must accept the inputs of `valid`", "int64 (4, 6)", "'0' (Embedding)"],
    )


class Convert:
    """An augmentation that makes numbers of bytes."""

    names = ("rate",)

    def __call__(self, x, pass_values):
        return x.float() / 255


def test_augmentations_may_convert_the_training_inputs():
    pixels = (255 * torch.rand(24, 4, generator=torch.Generator().manual_seed(0))).byte()
    tuner(changes={"augment": Convert(), "train": (pixels, Y), "valid": (pixels / 255, Y)})
    words = ["`model` must accept the inputs of `train`", "uint8 (4, 3)"]
    changes = {"augment": Convert(), "train": (pixels[:, :3], Y)}
    assert_refused(lambda: tuner(changes=changes), ValueError, words)


def summed(output, y):
    return F.cross_entropy(output, y, reduction="sum")


@pytest.mark.parametrize("what", ["loss", "valid_loss"])
@pytest.mark.parametrize(
    "loss",
    [summed, nn.CrossEntropyLoss(reduction="sum"), lambda o, y: F.cross_entropy(o, y, reduction="none").sum() / 8],
    ids=["function", "module", "sum-over-a-constant"],
)
def test_a_sum_instead_of_a_mean_is_refused(what, loss):
    words = [f"`{what}` must return a mean", "sum", 'reduction="mean"']
    for method in ("delta-stn", "fixed"):
        assert_refused(lambda method=method: tuner(method, changes={what: loss}), ValueError, words)


MEANS = {
    "mean": F.cross_entropy,
    "per-example": lambda o, y: F.cross_entropy(o, y, reduction="none"),
    "weighted-mean": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 9.0])),
    "masked-mean": lambda o, y: F.cross_entropy(o, y, ignore_index=1),
    "zero": lambda o, y: 0.0 * o.sum(),
    "negative": lambda o, y: -F.cross_entropy(o, y),
    "times-largest-target": lambda o, y: F.cross_entropy(o, y) * y.max(),
    "needs-all-examples": lambda o, y: F.cross_entropy(o[[0, 3]], y[[0, 3]]),
}


@pytest.mark.parametrize("name", MEANS)
def test_other_losses_are_accepted(name):
    tuner(changes={"loss": MEANS[name]})


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss])
def test_targets_that_would_be_broadcast_to_all_pairs_of_examples_are_refused(loss):
    network = nn.Sequential(rd.Dropout("rate"), nn.Linear(4, 1))
    flat, column = (X, X[:, 0]), (X, X[:, :1])
    words = ["`loss` must get targets of `valid`", "float32 (4, 1)", "float32 (4,)", "use `y.reshape(-1, 1)`"]
    for method in ("delta-stn", "fixed"):
        changes = {"model": network, "loss": loss, "train": flat, "valid": flat}
        assert_refused(lambda method=method, changes=changes: tuner(method, changes=changes), ValueError, words)
    tuner(changes={"model": network, "loss": loss, "train": column, "valid": column})


DETACHED = {
    "detached": lambda o, y: F.cross_entropy(o.detach(), y),
    "errors": lambda o, y: (o.argmax(1) != y).float().mean(),
}


@pytest.mark.parametrize("name", DETACHED)
def test_a_loss_without_a_gradient_is_refused(name):
    words = ["must have a gradient in the output of the model", "`output.detach()`"]
    for method in ("delta-stn", "fixed"):
        changes = {"loss": DETACHED[name], "valid_loss": F.cross_entropy}
        assert_refused(lambda method=method, changes=changes: tuner(method, changes=changes), ValueError, words)
    changes = {"valid_loss": DETACHED[name]}
    assert_refused(lambda: tuner(changes=changes), ValueError, ["`valid_loss`", *words])
    tuner("fixed", changes=changes)  # no hyper step differentiates it


def test_a_refused_task_leaves_no_hook_and_the_generators_as_they_were():
    torch.manual_seed(5)
    network = model()
    before = torch.get_rng_state()
    given = rd.Task(space=space(), model=network, loss=F.cross_entropy, train=(X.double(), Y), valid=PAIR)
    with pytest.raises(ValueError, match="float64"):
        rd.SelfTuner(given, epochs=2, batch_size=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize(
    ("layer", "replacement"),
    [
        (nn.Dropout(0.5), "rd.Dropout('rate')"),
        (nn.AlphaDropout(0.5), "rd.Dropout('rate')"),
        (nn.Dropout2d(0.5), "rd.ChannelDropout('rate')"),
    ],
)
def test_plain_dropout_beside_an_unused_rate_is_told_its_replacement(layer, replacement):
    network = nn.Sequential(nn.Linear(4, 5), nn.Sequential(layer), nn.Linear(5, 3))
    words = ["'rate'", f"{type(layer).__name__} '1.0'", f"replace it by {replacement}"]
    assert_refused(lambda: task(model=network), ValueError, words)


def test_plain_dropout_is_no_advice_for_a_weight_decay():
    network = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), rd.Dropout("rate"), nn.Linear(5, 3))
    hyperparameters = {"rate": rd.Bounded(0.2, low=0.0, high=0.9), "decay": rd.Positive(1e-3)}
    error = assert_refused(lambda: task(model=network, space=space(**hyperparameters)), ValueError, ["'decay'"])
    assert "rd.Dropout" not in str(error)


class Inner(nn.Module):
    """A network whose output has its own loss, as those of transformers, and a term that balances its experts."""

    def __init__(self):
        super().__init__()
        self.inner = model()

    def forward(self, x, y):
        scores = self.inner(x)
        return {"scores": scores, "loss": F.cross_entropy(scores, y), "balance": scores.square().mean()}


def inner(loss, method="delta-stn"):
    both = {"x": X, "y": Y}
    changes = {"model": Inner(), "train": both, "valid": both, "loss": loss, "batch": lambda batch: (batch, batch)}
    return tuner(method, changes=changes)


def test_a_loss_that_the_network_computes_is_refused_for_a_linearised_network():
    words = ["`loss` must be computed from the outputs of the examples for 'delta-stn'", "'centered-stn'"]
    assert_refused(lambda: inner(lambda output, batch: output["loss"]), TypeError, words)
    inner(lambda output, batch: output["loss"], "centered-stn")
    inner(lambda output, batch: F.cross_entropy(output["scores"], batch["y"]))


def test_a_part_of_the_loss_that_the_network_computes_gives_a_warning():
    def loss(output, batch):
        return F.cross_entropy(output["scores"], batch["y"]) + 0.1 * output["balance"]

    with pytest.warns(rd.RunWarning, match="as a part of the loss; the response sees this part as linear"):
        inner(loss)
