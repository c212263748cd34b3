"""Mistakes of a user show where they enter, in one line with the rule, the value got and the name concerned."""

import io
import math
import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import ray_deltastn as rd
from ray_deltastn.settings import Settings
from ray_deltastn.tasks import build_task, find_task

try:
    from ray_deltastn import DeltaSTNTrainable
    from ray_deltastn.tune.config import ConfigError, ExperimentConfig
except ImportError:  # Ray is missing: its part of the table is skipped.
    DeltaSTNTrainable = None
    ConfigError = ValueError

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
PAIR = (X, Y)


def space(**hyperparameters):
    return rd.HyperSpace(**(hyperparameters or {"rate": rd.Bounded(0.2, low=0.0, high=0.9)}))


def model(*layers):
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), *(layers or [rd.Dropout("rate")]), nn.Linear(5, 3))


def task(**changes):
    torch.manual_seed(0)
    given = {"space": space(), "model": None, "loss": F.cross_entropy, "train": PAIR, "valid": PAIR, **changes}
    given["model"] = given["model"] or model()
    return rd.Task(**given)


def tuner(method="delta-stn", changes=None, **settings):
    return rd.SelfTuner(task(**(changes or {})), method=method, **{"epochs": 2, "batch_size": 8, **settings})


def build(config):
    """Task of the trials below."""
    return task()


def build_nothing(config):
    """Forgets to return."""


NOT_CALLABLE = 3


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield X[0], Y[0]


class WithoutLength(Dataset):
    def __getitem__(self, index):
        return X[index], Y[index]


class Examples(Dataset):
    """Examples in whatever form `form` gives them."""

    def __init__(self, form, count=24):
        self.form, self.count = form, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.form(X[index], Y[index])


class Recurrent(nn.Module):
    """An LSTM between layers that respond."""

    def __init__(self):
        super().__init__()
        self.before, self.memory = nn.Linear(4, 4), nn.LSTM(4, 4, batch_first=True)
        self.dropout, self.after = rd.Dropout("rate"), nn.Linear(4, 3)

    def forward(self, x):
        hidden, _ = self.memory(self.before(x)[:, None])
        return self.after(self.dropout(hidden[:, -1]))


class Lambda(nn.Module):
    """Applies a function to a model's output."""

    def __init__(self, function):
        super().__init__()
        self.model, self.function = model(), function

    def forward(self, x):
        return self.function(self.model(x))


def frozen():
    network = model()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


class OwnWeights(nn.Module):
    """Trainable, but without any layer that has a rule."""

    def __init__(self):
        super().__init__()
        self.matrix, self.dropout = nn.Parameter(torch.randn(4, 3)), rd.Dropout("rate")

    def forward(self, x):
        return self.dropout(x) @ self.matrix


def cutout(name):
    return rd.Cutout(name, name)


# --- hyperparameters -------------------------------------------------------------------------------------------------

SPACES = {
    "initial-on-lower-bound": (
        lambda: space(rate=rd.Bounded(0.0, low=0.0, high=0.9)),
        ValueError,
        ["`low < initial < high`", "low=0.0", "initial=0.0", "high=0.9", "'rate'"],
    ),
    "initial-on-upper-bound": (
        lambda: space(rate=rd.Bounded(0.9, low=0.0, high=0.9)),
        ValueError,
        ["`low < initial < high`", "initial=0.9", "'rate'"],
    ),
    "initial-outside": (
        lambda: space(rate=rd.Bounded(1.5, low=0.0, high=0.9)),
        ValueError,
        ["`low < initial < high`", "initial=1.5", "'rate'"],
    ),
    "initial-not-positive": (
        lambda: space(decay=rd.Positive(0.0)),
        ValueError,
        ["`low < initial < high`", "initial=0.0", "'decay'"],
    ),
    "initial-nan": (lambda: space(rate=rd.Bounded(math.nan)), ValueError, ["`initial`", "finite", "nan", "'rate'"]),
    "initial-infinite": (lambda: space(decay=rd.Positive(math.inf)), ValueError, ["`initial`", "inf", "'decay'"]),
    "initial-text": (lambda: space(rate=rd.Bounded("0.5")), ValueError, ["`initial`", "'0.5'", "'rate'"]),
    "initial-bool": (lambda: space(rate=rd.Unbounded(True)), ValueError, ["`initial`", "True", "'rate'"]),
    "bounds-nan": (lambda: space(rate=rd.Bounded(0.5, low=math.nan)), ValueError, ["low", "nan", "'rate'"]),
    "bounds-infinite": (
        lambda: space(rate=rd.Bounded(0.5, low=0.0, high=math.inf)),
        ValueError,
        ["high", "inf", "'rate'"],
    ),
    "bounds-swapped": (
        lambda: space(rate=rd.Bounded(0.5, low=0.9, high=0.0)),
        ValueError,
        ["`low < initial < high`", "low=0.9", "high=0.0", "'rate'"],
    ),
    "scale-zero": (lambda: space(rate=rd.Bounded(0.2, scale=0)), ValueError, ["`scale > 0`", "scale=0", "'rate'"]),
    "scale-negative": (lambda: space(rate=rd.Bounded(0.2, scale=-1.0)), ValueError, ["`scale > 0`", "-1.0", "'rate'"]),
    "scale-nan": (lambda: space(rate=rd.Bounded(0.2, scale=math.nan)), ValueError, ["`scale`", "nan", "'rate'"]),
    "per-unknown": (
        lambda: space(rate=rd.Bounded(0.2, per="minibatch")),
        ValueError,
        ["`per`", "'example' or 'batch'", "'minibatch'", "'rate'"],
    ),
    "search-outside": (
        lambda: space(rate=rd.Bounded(0.2, high=0.9, search=(0.1, 1.5))),
        ValueError,
        ["search[1] <= high", "(0.1, 1.5)", "high=0.9", "'rate'"],
    ),
    "search-not-a-pair": (lambda: space(rate=rd.Bounded(0.2, search=0.5)), ValueError, ["`search", "0.5", "'rate'"]),
    "integer-bound-broken": (
        lambda: space(holes=rd.Integer(1, low=0, high=2.5)),
        ValueError,
        ["`high` must be a whole number", "high=2.5", "'holes'"],
    ),
    "no-hyperparameter": (lambda: rd.HyperSpace(), ValueError, ["`HyperSpace`", "at least one", "none"]),
    "not-a-hyperparameter": (lambda: space(rate=0.5), TypeError, ["`rate`", "hyperparameter", "0.5"]),
    "class-not-a-hyperparameter": (lambda: space(rate=rd.Bounded), TypeError, ["`rate`", "hyperparameter", "Bounded"]),
    "open-domain-to-tune": (
        lambda: space(shift=rd.Unbounded(0.0)).to_tune(),
        ValueError,
        ["`search=(low, high)`", "inf", "'shift'"],
    ),
}

# --- tasks -----------------------------------------------------------------------------------------------------------

TASKS = {
    "space-is-no-space": (
        lambda: task(space={"rate": 0.5}),
        TypeError,
        ["`space` must be a HyperSpace", "dict"],
    ),
    "model-is-no-module": (lambda: task(model=lambda x: x), TypeError, ["`model` must be an nn.Module", "function"]),
    "unknown-name-in-the-model": (
        lambda: task(model=model(rd.Dropout("rat"))),
        ValueError,
        ["`Dropout`", "unknown hyperparameter", "'rat'", "rate"],
    ),
    "unknown-name-in-augment": (
        lambda: task(augment=cutout("holes")),
        ValueError,
        ["`Cutout`", "unknown hyperparameter", "'holes'", "rate"],
    ),
    "unknown-name-in-penalty": (
        lambda: task(penalty=rd.L2("decay")),
        ValueError,
        ["`L2`", "unknown hyperparameter", "'decay'", "rate"],
    ),
    "unknown-name-in-valid-penalty": (
        lambda: task(valid_penalty=[rd.L2("decay")]),
        ValueError,
        ["`L2`", "unknown hyperparameter", "'decay'"],
    ),
    "name-is-no-name": (lambda: rd.Dropout(0.5), TypeError, ["`name`", "0.5"]),
    "hyperparameter-nobody-uses": (
        lambda: task(space=space(rate=rd.Bounded(0.2), decay=rd.Positive(1e-3))),
        ValueError,
        ["used by a regulariser", "'decay'", "none"],
    ),
    "loss-not-callable": (lambda: task(loss="cross_entropy"), TypeError, ["`loss` must be callable", "cross_entropy"]),
    "metric-not-callable": (lambda: task(metrics={"top": 5}), TypeError, ["`top` must be callable", "5"]),
    "augment-not-an-augmentation": (
        lambda: task(augment=torch.nn.Identity),
        TypeError,
        ["`augment`", "`names`", "Identity"],
    ),
    "penalty-not-callable": (lambda: task(penalty=0.01), TypeError, ["`penalty` must be callable", "0.01"]),
    "penalty-divided-by-zero": (
        lambda: rd.L2("decay", divide_by=0),
        ValueError,
        ["`divide_by > 0`", "divide_by=0", "'decay'"],
    ),
    "task-is-no-task": (lambda: rd.SelfTuner(model()), TypeError, ["`task` must be a Task", "Sequential"]),
}

# --- models and losses -----------------------------------------------------------------------------------------------

MODELS = {
    "no-trainable-parameter": (
        lambda: tuner(changes={"model": frozen()}),
        ValueError,
        ["`model`", "trainable parameter", "none"],
    ),
    "no-layer-that-can-respond": (
        lambda: tuner(changes={"model": OwnWeights()}),
        ValueError,
        ["`model`", "respond", "OwnWeights", "matrix"],
    ),
    "lstm-has-no-forward-mode-rule": (
        lambda: tuner(changes={"model": Recurrent()}),
        TypeError,
        ["forward-mode rule", "'delta-stn'", "'memory'"],
    ),
    "output-is-a-tuple": (
        lambda: tuner(changes={"model": Lambda(lambda x: (x, x))}),
        TypeError,
        ["model", "output", "tensor", "tuple"],
    ),
    "output-is-a-tuple-under-fixed": (
        lambda: tuner("fixed", changes={"model": Lambda(lambda x: (x, x))}),
        TypeError,
        ["model", "output", "tensor", "tuple"],
    ),
    "output-is-a-dictionary": (
        lambda: tuner(changes={"model": Lambda(lambda x: {"logits": x})}),
        TypeError,
        ["model", "output", "tensor", "dict"],
    ),
    "output-without-batch": (
        lambda: tuner(changes={"model": Lambda(lambda x: x[:1])}),
        ValueError,
        ["`output.shape[0]` must be the batch size", "(1, 3)"],
    ),
    "output-is-a-scalar": (
        lambda: tuner(changes={"model": Lambda(lambda x: x.mean()), "loss": lambda output, y: output}),
        ValueError,
        ["`output.shape[0]` must be the batch size", "()"],
    ),
    "loss-of-a-wrong-shape": (
        lambda: tuner(changes={"loss": lambda output, y: output * 0}),
        ValueError,
        ["`loss` must return", "(4,)", "(4, 3)"],
    ),
    "valid-loss-of-a-wrong-shape": (
        lambda: tuner(changes={"valid_loss": lambda output, y: output * 0}),
        ValueError,
        ["`valid_loss` must return", "(4, 3)"],
    ),
    "loss-is-a-number": (
        lambda: tuner(changes={"loss": lambda output, y: 0.5}),
        ValueError,
        ["`loss` must return", "float"],
    ),
    "batch-of-one-under-batch-norm": (
        lambda: tuner(changes={"model": model(nn.BatchNorm1d(5), rd.Dropout("rate"))}, batch_size=23),
        ValueError,
        ["at least two examples", "BatchNorm1d", "one", "`batch_size`", "`train`"],
    ),
    "batches-of-one-under-batch-norm": (
        lambda: tuner(changes={"model": model(nn.BatchNorm1d(5), rd.Dropout("rate"))}, batch_size=1),
        ValueError,
        ["at least two examples", "BatchNorm1d", "one", "`batch_size`"],
    ),
    "dropout-of-a-rate-above-one": (
        lambda: rd.Task(
            space=rd.HyperSpace(rate=rd.Positive(0.1)),
            model=nn.Sequential(rd.Dropout("rate"), nn.Linear(5, 3)),
            loss=F.cross_entropy,
            train=(torch.randn(8, 5), torch.zeros(8, dtype=torch.long)),
            valid=(torch.randn(8, 5), torch.zeros(8, dtype=torch.long)),
        ),
        ValueError,
        ["`0 <= low < high <= 1`", "Dropout", "inf", "'rate'"],
    ),
    "task-in-use": (
        lambda: (lambda first: rd.SelfTuner(first.task))(tuner()),
        ValueError,
        ["`task`", "in use", "`release()`"],
    ),
    "fraction-of-a-whole-number": (
        lambda: rd.HyperSpace(k=rd.Integer(1, low=0, high=4)).fixed_values({"k": 1.5}),
        ValueError,
        ["whole number", "1.5", "'k'"],
    ),
    "schedule-that-divides-by-zero": (
        lambda: tuner(schedule={"name": "cosine", "T_max": 0}),
        ValueError,
        ["`schedule`", "CosineAnnealingLR", "T_max"],
    ),
    "fraction-of-one-under-batch-norm": (
        lambda: list(
            tuner(
                changes={"model": model(nn.BatchNorm1d(5), rd.Dropout("rate"))}, batch_size=11, response_fraction=0.5
            ).fit()
        ),
        ValueError,
        ["at least two examples", "BatchNorm1d", "one", "`response_fraction`"],
    ),
}

# --- data ------------------------------------------------------------------------------------------------------------

DATA = {
    "empty-tensors": (
        lambda: tuner(changes={"train": (X[:0], Y[:0])}),
        ValueError,
        ["`train`", "at least one", "none"],
    ),
    "empty-validation": (
        lambda: tuner(changes={"valid": (X[:0], Y[:0])}),
        ValueError,
        ["`valid`", "at least one", "none"],
    ),
    "empty-dataset": (
        lambda: tuner(changes={"train": Examples(lambda x, y: (x, y), 0)}),
        ValueError,
        ["`train`", "at least one", "none"],
    ),
    "empty-subset": (
        lambda: tuner(changes={"train": Subset(TensorDataset(*PAIR), [])}),
        ValueError,
        ["`train`", "at least one", "none"],
    ),
    "empty-loader": (
        lambda: tuner(changes={"valid": DataLoader(TensorDataset(*PAIR), 32, drop_last=True)}),
        ValueError,
        ["`valid`", "at least one", "none"],
    ),
    "different-lengths": (
        lambda: tuner(changes={"test": (X, Y[:-3])}),
        ValueError,
        ["`len(x) == len(y)`", "24", "21", "'test'"],
    ),
    "three-tensors": (lambda: tuner(changes={"train": (X, Y, Y)}), ValueError, ["`train`", "two tensors", "3"]),
    "three-tensors-in-a-dataset": (
        lambda: tuner(changes={"train": TensorDataset(X, Y, Y)}),
        ValueError,
        ["`train`", "two tensors", "3"],
    ),
    "one-tensor": (lambda: tuner(changes={"train": X}), TypeError, ["`train`", "pair of tensors", "Tensor"]),
    "arrays": (lambda: tuner(changes={"valid": (X.numpy(), Y.numpy())}), TypeError, ["`valid`", "tensors", "tuple"]),
    "text": (lambda: tuner(changes={"train": "mnist"}), TypeError, ["`train`", "pair of tensors", "str"]),
    "missing-validation": (lambda: tuner(changes={"valid": None}), TypeError, ["`valid`", "NoneType"]),
    "iterable-dataset": (lambda: tuner(changes={"train": Endless()}), TypeError, ["`train`", "map-style", "Endless"]),
    "loader-without-length": (
        lambda: tuner(changes={"train": DataLoader(Endless(), 4)}),
        ValueError,
        ["`train`", "length", "Endless"],
    ),
    "dataset-without-length": (
        lambda: tuner(changes={"train": WithoutLength()}),
        (ValueError, TypeError),
        ["`train`", "length", "WithoutLength"],
    ),
    "triples": (
        lambda: tuner(changes={"valid": Examples(lambda x, y: (x, y, y))}),
        ValueError,
        ["`valid`", "pairs (x, y)", "3"],
    ),
    "triples-to-train-on": (
        lambda: list(tuner(changes={"train": Examples(lambda x, y: (x, y, y))}).fit()),
        ValueError,
        ["`train`", "pairs (x, y)", "3"],
    ),
    "dictionaries": (
        lambda: tuner(changes={"valid": Examples(lambda x, y: {"image": x, "label": y})}),
        (ValueError, TypeError),
        ["`valid`", "pairs (x, y)", "dict"],
    ),
    "inputs-that-are-no-tensors": (
        lambda: tuner(changes={"valid": Examples(lambda x, y: ({"image": x}, y))}),
        (ValueError, TypeError),
        ["`valid`", "tensor", "dict"],
    ),
}

# --- options ---------------------------------------------------------------------------------------------------------

SETTINGS = {
    "unknown-method": (
        lambda: tuner("delta-snt"),
        ValueError,
        ["`method` must be one of", "'delta-snt'", "did you mean 'delta-stn'"],
    ),
    "method-of-a-wrong-type": (lambda: tuner(["delta-stn"]), ValueError, ["`method` must be one of", "['delta-stn']"]),
    "unknown-option": (
        lambda: tuner(train_intervals=3),
        ValueError,
        ["options", "'train_intervals'", "did you mean 'train_interval'"],
    ),
    "unknown-option-like-no-other": (lambda: tuner(colour="red"), ValueError, ["options", "'colour'"]),
    "zero-epochs": (lambda: tuner(epochs=0), ValueError, ["`epochs >= 1`", "epochs=0"]),
    "broken-epochs": (lambda: tuner(epochs=1.5), ValueError, ["`epochs >= 1`", "whole", "epochs=1.5"]),
    "negative-train-interval": (lambda: tuner(train_interval=-5), ValueError, ["`train_interval >= 1`", "-5"]),
    "zero-valid-interval": (lambda: tuner(valid_interval=0), ValueError, ["`valid_interval >= 1`", "valid_interval=0"]),
    "zero-batch-size": (lambda: tuner(batch_size=0), ValueError, ["`batch_size >= 1`", "batch_size=0"]),
    "negative-warmup": (lambda: tuner(warmup=-1), ValueError, ["`warmup >= 0`", "warmup=-1"]),
    "negative-warmup-steps": (lambda: tuner(warmup_steps=-1), ValueError, ["`warmup_steps >= 0`", "-1"]),
    "zero-patience": (lambda: tuner(patience=0), ValueError, ["`patience >= 1`", "patience=0"]),
    "zero-steps-per-report": (lambda: tuner(steps_per_report=0), ValueError, ["`steps_per_report >= 1`", "=0"]),
    "lr-nan": (lambda: tuner(lr=math.nan), ValueError, ["`lr > 0`", "lr=nan"]),
    "lr-negative": (lambda: tuner(lr=-0.1), ValueError, ["`lr > 0`", "lr=-0.1"]),
    "lr-text": (lambda: tuner(lr="0.1"), ValueError, ["`lr > 0`", "lr='0.1'"]),
    "hyper-lr-infinite": (lambda: tuner(hyper_lr=math.inf), ValueError, ["`hyper_lr > 0`", "hyper_lr=inf"]),
    "scale-lr-zero": (lambda: tuner(scale_lr=0.0), ValueError, ["`scale_lr > 0`", "scale_lr=0.0"]),
    "clip-grad-zero": (lambda: tuner(clip_grad=0.0), ValueError, ["`clip_grad > 0`", "clip_grad=0.0"]),
    "entropy-weight-negative": (lambda: tuner(entropy_weight=-1e-3), ValueError, ["`entropy_weight >= 0`", "-0.001"]),
    "momentum-one": (lambda: tuner(momentum=1.0), ValueError, ["`momentum >= 0 and momentum < 1`", "momentum=1.0"]),
    "response-fraction-zero": (
        lambda: tuner(response_fraction=0),
        ValueError,
        ["response_fraction > 0", "response_fraction <= 1", "response_fraction=0"],
    ),
    "response-fraction-above-one": (
        lambda: tuner(response_fraction=1.5),
        ValueError,
        ["response_fraction <= 1", "response_fraction=1.5"],
    ),
    "response-fraction-with-stn": (
        lambda: tuner("stn", response_fraction=0.5),
        ValueError,
        ["`response_fraction`", "0.5", "'stn'"],
    ),
    "seed-negative": (lambda: tuner(seed=-1), ValueError, ["`seed >= 0`", "seed=-1"]),
    "unknown-optimizer": (
        lambda: tuner(optimizer="rmsprop"),
        ValueError,
        ["`optimizer` must be one of sgd, adam, adamw", "'rmsprop'"],
    ),
    "unknown-hyper-optimizer": (
        lambda: tuner(hyper_optimizer="sgd"),
        ValueError,
        ["`hyper_optimizer` must be one of rmsprop, adam", "'sgd'"],
    ),
    "unknown-schedule": (lambda: tuner(schedule="cosin"), ValueError, ["`schedule` must be one of", "'cosin'"]),
    "schedule-without-name": (
        lambda: tuner(schedule={"step_size": 3}),
        ValueError,
        ["`schedule` must be one of", "None"],
    ),
    "schedule-with-missing-arguments": (
        lambda: tuner(schedule="step"),
        ValueError,
        ["`schedule`", "StepLR", "step_size"],
    ),
    "schedule-with-unknown-arguments": (
        lambda: tuner(schedule={"name": "cosine", "period": 3}),
        ValueError,
        ["`schedule`", "CosineAnnealingLR", "period"],
    ),
    "schedule-with-a-bad-value": (
        lambda: tuner(schedule={"name": "plateau", "factor": 2.0}),
        ValueError,
        ["`schedule`", "ReduceLROnPlateau", "2.0"],
    ),
    "schedule-of-a-wrong-type": (lambda: tuner(schedule=5), ValueError, ["`schedule`", "5"]),
    "hyperparameters-with-delta-stn": (
        lambda: tuner(hyperparameters={"rate": 0.3}),
        ValueError,
        ["`hyperparameters`", "'fixed'", "'delta-stn'"],
    ),
    "fixed-value-outside-its-domain": (
        lambda: tuner("fixed", hyperparameters={"rate": 1.2}),
        ValueError,
        ["`low <= value <= high`", "value=1.2", "high=0.9", "'rate'"],
    ),
    "fixed-value-in-a-schedule-outside-its-domain": (
        lambda: tuner("fixed", hyperparameters={"rate": [0.1, -0.2]}),
        ValueError,
        ["`low <= value <= high`", "value=-0.2", "'rate'"],
    ),
    "fixed-value-nan": (
        lambda: tuner("fixed", hyperparameters={"rate": math.nan}),
        ValueError,
        ["`low <= value <= high`", "value=nan", "'rate'"],
    ),
    "fixed-value-text": (
        lambda: tuner("fixed", hyperparameters={"rate": "0.3"}),
        ValueError,
        ["value='0.3'", "'rate'"],
    ),
    "fixed-schedule-empty": (
        lambda: tuner("fixed", hyperparameters={"rate": []}),
        ValueError,
        ["at least one value", "none", "'rate'"],
    ),
    "fixed-unknown-name": (
        lambda: tuner("fixed", hyperparameters={"rat": 0.2}),
        ValueError,
        ["`hyperparameters`", "unknown", "'rat'", "rate"],
    ),
    "hyperparameters-of-a-wrong-type": (
        lambda: tuner("fixed", hyperparameters=0.3),
        (ValueError, TypeError),
        ["`hyperparameters`", "0.3"],
    ),
    "device-unknown": (lambda: tuner(device="gpu"), ValueError, ["`device`", "'gpu'"]),
    "settings-of-a-linearised-method-not-centred": (
        lambda: rd.Method("mine", centered=False),
        ValueError,
        ["centred", "centered=False", "'mine'"],
    ),
}

# --- tasks by name ---------------------------------------------------------------------------------------------------

NAMES = {
    "unknown-task": (
        lambda: find_task("digit-mlp"),
        ValueError,
        ["`task` must be one of", "'digit-mlp'", "did you mean 'digits-mlp'"],
    ),
    "task-of-a-wrong-type": (lambda: find_task(5), TypeError, ["`task` must be", "5"]),
    "missing-module": (
        lambda: find_task("no_such_package.tasks:build"),
        ValueError,
        ["`task`", "'module:function'", "no_such_package"],
    ),
    "missing-attribute": (
        lambda: find_task("ray_deltastn.tasks:bild"),
        ValueError,
        ["`task`", "'ray_deltastn.tasks:bild'", "bild"],
    ),
    "nothing-callable": (
        lambda: find_task(f"{__name__}:NOT_CALLABLE"),
        TypeError,
        ["`task` must name a callable", "NOT_CALLABLE", "int"],
    ),
    "nothing-after-the-colon": (
        lambda: find_task("ray_deltastn.tasks:"),
        (ValueError, TypeError),
        ["`task`", "'ray_deltastn.tasks:'"],
    ),
    "nothing-before-the-colon": (lambda: find_task(":build"), (ValueError, TypeError), ["`task`", "':build'"]),
    "config-without-task": (lambda: build_task({"lr": 0.1}), ValueError, ["`config` must hold 'task'", "'lr'"]),
    "build-returns-nothing": (
        lambda: build_task({"task": build_nothing}),
        TypeError,
        ["`task` must build a Task", "NoneType", "build_nothing"],
    ),
    "ready-task-with-a-bad-width": (
        lambda: build_task({"task": "digits-mlp", "width": 0}),
        ValueError,
        ["`width", "0"],
    ),
}

# --- saved states ----------------------------------------------------------------------------------------------------


def load(saved, own):
    own.load_state_dict(saved.state_dict())


def other_space():
    return tuner(changes={"space": space(rate=rd.Bounded(0.2, low=0.0, high=0.8))})


def more_hyperparameters():
    hyperparameters = {"rate": rd.Bounded(0.2, low=0.0, high=0.9), "decay": rd.Positive(1e-3)}
    return tuner(changes={"space": space(**hyperparameters), "penalty": rd.L2("decay")})


def other_model():
    return tuner(changes={"model": nn.Sequential(nn.Linear(4, 6), rd.Dropout("rate"), nn.ReLU(), nn.Linear(6, 3))})


STATES = {
    "state-of-another-domain": (
        lambda: load(other_space(), tuner()),
        ValueError,
        ["`state`", "same space", "'rate'", "0.8", "0.9"],
    ),
    "state-of-another-space": (lambda: load(more_hyperparameters(), tuner()), ValueError, ["same space", "'decay'"]),
    "state-of-another-method": (
        lambda: load(tuner("stn"), tuner()),
        ValueError,
        ["`state`", "same method", "'stn'", "'delta-stn'"],
    ),
    "state-of-another-model": (
        lambda: load(other_model(), tuner()),
        ValueError,
        ["`state`", "same model", "'0.bias'", "'6'", "'5'"],
    ),
    "state-of-another-optimizer": (
        lambda: load(tuner(optimizer="adam"), tuner()),
        ValueError,
        ["`state`", "same optimizer", "'adam'", "'sgd'"],
    ),
    "state-of-another-hyper-optimizer": (
        lambda: load(tuner(hyper_optimizer="adam"), tuner()),
        ValueError,
        ["`state`", "same hyper_optimizer", "'adam'", "'rmsprop'"],
    ),
    "state-with-another-choice-of-scale": (
        lambda: load(tuner(tune_scale=False), tuner()),
        ValueError,
        ["`state`", "same tune_scale", "False", "True"],
    ),
    "state-that-is-none": (lambda: tuner().load_state_dict({"a": 1}), ValueError, ["`state`", "SelfTuner", "dict"]),
    "state-that-is-a-list": (lambda: tuner().load_state_dict([1]), ValueError, ["`state`", "SelfTuner", "list"]),
    "state-with-parts-missing": (
        lambda: tuner().load_state_dict({"identity": tuner().state_dict()["identity"]}),
        ValueError,
        ["`state`", "'space'"],
    ),
}

EVERYWHERE = {**SPACES, **TASKS, **MODELS, **DATA, **SETTINGS, **NAMES, **STATES}


def assert_refused(call, error, words):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    missing = [word for word in words if word not in text]
    assert not missing, text
    return caught.value


@pytest.mark.parametrize("case", EVERYWHERE)
def test_bad_input_is_refused_in_one_line(case):
    assert_refused(*EVERYWHERE[case])


# --- trials and their checkpoints ------------------------------------------------------------------------------------

needs_ray = pytest.mark.skipif(DeltaSTNTrainable is None, reason="needs Ray")


def trial(**changes):
    return DeltaSTNTrainable({"task": build, "epochs": 2, "batch_size": 8, **changes})


RESOURCES = {
    "unknown-resource": ({"gpus": 1}, ["`resources`", "'cpu' and 'gpu'", "'gpus'"]),
    "negative-resource": ({"cpu": -1}, ["`resources.cpu >= 0`", "-1"]),
    "negative-gpu": ({"gpu": -0.5}, ["`resources.gpu >= 0`", "-0.5"]),
    "resource-as-text": ({"cpu": "2"}, ["`resources.cpu >= 0`", "'2'"]),
    "resource-nan": ({"cpu": math.nan}, ["`resources.cpu >= 0`", "nan"]),
    "resources-of-a-wrong-type": (4, ["`resources`", "4"]),
}


@needs_ray
@pytest.mark.parametrize("case", RESOURCES)
def test_bad_resources_are_refused_in_one_line(case):
    resources, words = RESOURCES[case]
    call = lambda: DeltaSTNTrainable.default_resource_request({"resources": resources})  # noqa: E731
    assert_refused(call, (ValueError, TypeError), words)


TRIALS = {
    "trial-without-task": ({"task": None}, (ValueError, TypeError), ["`task`", "None"]),
    "trial-of-an-unknown-task": ({"task": "digits"}, ValueError, ["`task` must be one of", "'digits'"]),
    "trial-that-builds-nothing": ({"task": build_nothing}, TypeError, ["`task` must build a Task", "NoneType"]),
    "trial-of-an-unknown-method": ({"method": "stm"}, ValueError, ["`method`", "'stm'", "did you mean 'stn'"]),
    "trial-with-a-bad-lr": ({"lr": -1.0}, ValueError, ["`lr > 0`", "lr=-1.0"]),
    "trial-with-a-bad-seed": ({"seed": "first"}, ValueError, ["`seed >= 0`", "seed='first'"]),
}


@needs_ray
@pytest.mark.parametrize("case", TRIALS)
def test_bad_trial_is_refused_in_one_line(case):
    changes, error, words = TRIALS[case]
    assert_refused(lambda: trial(**changes), error, words)


MARK = Path(tempfile.gettempdir(), f"code_of_a_checkpoint_ran_{os.getpid()}")


class Code:
    """Leaves a mark when it is unpickled the unsafe way."""

    def __reduce__(self):
        return os.mkdir, (str(MARK),)


def truncated(good):
    return good[: len(good) // 2]


def with_code(good):
    file = io.BytesIO()
    torch.save({"identity": {}, "code": Code()}, file)
    return file.getvalue()


def other_content(good):
    file = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, file)
    return file.getvalue()


DAMAGES = {
    "truncated": truncated,
    "truncated-at-the-end": lambda good: good[:-30],
    "truncated-to-one-byte": lambda good: good[:1],
    "empty": lambda good: b"",
    "garbage": lambda good: bytes(range(256)) * 8,
    "zeros": lambda good: bytes(2000),
    "text": lambda good: b"hello, world\n" * 20,
    "overwritten-in-the-middle": lambda good: good[:200] + b"\xff" * 400 + good[600:],
    "pickled-code": with_code,
    "missing": None,
}


@needs_ray
@pytest.mark.parametrize("how", ["load_checkpoint", "restore"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_refused_in_one_line_and_changes_nothing(damage, how, tmp_path):
    trial().save(str(tmp_path))
    path = tmp_path / "deltastn.pt"
    if DAMAGES[damage] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    own, undisturbed = trial(), trial()
    assert_refused(lambda: getattr(own, how)(str(tmp_path)), ValueError, ["checkpoint", str(path)])
    assert not MARK.exists()
    assert own.train()["valid_loss"] == undisturbed.train()["valid_loss"]


@needs_ray
def test_checkpoint_of_something_else_is_refused(tmp_path):
    (tmp_path / "deltastn.pt").write_bytes(other_content(b""))
    assert_refused(lambda: trial().load_checkpoint(str(tmp_path)), ValueError, ["`state`", "SelfTuner", "dict"])


def task_of(used):
    """The task of a tuner that lets go of it."""
    used.release()
    return used.task


@needs_ray
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "stn"}, ["same method", "'stn'", "'delta-stn'"]),
        ({"optimizer": "adam"}, ["same optimizer", "'adam'", "'sgd'"]),
        ({"task": lambda config: task_of(more_hyperparameters())}, ["same space", "'decay'"]),
        ({"task": lambda config: task_of(other_model())}, ["same model", "'0.bias'", "'6'", "'5'"]),
    ],
)
def test_checkpoint_of_another_run_is_refused_and_changes_nothing(changes, words, tmp_path):
    trial(**changes).save(str(tmp_path))
    own, undisturbed = trial(), trial()
    assert_refused(lambda: own.load_checkpoint(str(tmp_path)), ValueError, words)
    assert own.train()["valid_loss"] == undisturbed.train()["valid_loss"]


# --- configuration files ---------------------------------------------------------------------------------------------

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


@needs_ray
@pytest.mark.parametrize("case", FILES)
def test_bad_configuration_is_refused_in_one_line(case, tmp_path):
    content, overrides, words = FILES[case]
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = [word.format(path=path) if "{path}" in word else word for word in words]
    assert_refused(lambda: ExperimentConfig.read(path, overrides), ConfigError, words)


@needs_ray
def test_good_configuration_is_accepted(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    config = ExperimentConfig.read(path, ["train.epochs=7", "tune.cpu=0.5"])
    assert config.train["epochs"] == 7
    assert config.tune.cpu == 0.5


# --- nothing is half done --------------------------------------------------------------------------------------------


def hooks_of(network):
    return [name for name, m in network.named_modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize(
    ("network", "changes"),
    [(Recurrent, {}), (model, {"loss": lambda output, y: output * 0}), (lambda: Lambda(lambda x: (x, x)), {})],
    ids=["forward-mode", "loss", "output"],
)
def test_refused_task_leaves_the_model_as_it_was(network, changes):
    refused = network()
    was_training = refused.training
    with pytest.raises((TypeError, ValueError)):
        tuner(changes={"model": refused, **changes})
    assert hooks_of(refused) == []
    assert all(m._setting is None for m in refused.modules() if isinstance(m, rd.Dropout))
    assert refused.training == was_training


def test_refused_state_changes_nothing():
    for other in (
        other_space,
        more_hyperparameters,
        other_model,
        lambda: tuner("stn"),
        lambda: tuner(optimizer="adam"),
    ):
        state = other().state_dict()
        own, undisturbed = tuner(), tuner()
        with pytest.raises(ValueError, match="`state`"):
            own.load_state_dict(state)
        assert own.step()["valid_loss"] == undisturbed.step()["valid_loss"]


def test_good_inputs_beside_the_bad_ones_are_accepted():
    assert task()
    assert tuner().step()["epoch"] == 1
    assert tuner("centered-stn", changes={"model": Recurrent()}).step()["epoch"] == 1
    assert tuner("fixed", hyperparameters={"rate": [0.0, 0.9]}).step()["hyperparameters/rate"] == 0.0
    assert Settings(momentum=0, warmup=0, response_fraction=1, entropy_weight=0)
    norm = model(nn.BatchNorm1d(5), rd.Dropout("rate"))
    assert tuner(changes={"model": norm}, batch_size=11).step()["epoch"] == 1
