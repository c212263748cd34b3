"""A multilayer perceptron on scikit-learn's digits, 1,797 real 8×8 images. It downloads no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.domains import Bounded, Hyperparameter, Positive
from ray_deltastn.regularizers import L2, Dropout
from ray_deltastn.space import HyperSpace
from ray_deltastn.task import Task
from ray_deltastn.tasks.options import started, whole

Split = tuple[Tensor, Tensor]


def digits(seed: int = 0) -> tuple[Split, Split, Split]:
    """Training, validation and test split (60 %, 20 %, 20 %), standardised with the statistics of the training split.

    Args:
        seed: seed of the permutation before the split.

    Returns:
        Three pairs (x, y): images (n, 1, 8, 8) in float32, labels (n,).
    """
    from sklearn.datasets import load_digits  # this import takes a second; other tasks do not need it

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    train, valid = int(0.6 * len(images)), int(0.8 * len(images))
    mean, std = images[:train].mean(), images[:train].std()
    images = (images - mean) / std
    return (
        (images[:train], labels[:train]),
        (images[train:valid], labels[train:valid]),
        (images[valid:], labels[valid:]),
    )


def digits_mlp(config: Mapping[str, Any]) -> Task:
    """Ready task `digits-mlp`: three dropout rates and weight decay of a 64-`width`-`width`-10 perceptron.

    Args:
        config: options of the task: `width` (number of units of each hidden layer, default 256), `split_seed`
            (default 0), `initial_values` (name → initial value) and `perturbation_scale` (initial σ).

    Raises:
        ValueError: if an option breaks its rule.
    """
    width = whole(config, "width", 256, least=1)
    train, valid, test = digits(whole(config, "split_seed", 0))
    domains: dict[str, Hyperparameter] = {
        "input_dropout": Bounded(0.05, low=0.0, high=0.95),
        "hidden1_dropout": Bounded(0.05, low=0.0, high=0.95),
        "hidden2_dropout": Bounded(0.05, low=0.0, high=0.95),
        "weight_decay": Positive(1e-4, search=(1e-6, 1e-1)),
    }
    model = nn.Sequential(
        nn.Flatten(),
        Dropout("input_dropout"),
        nn.Linear(64, width),
        nn.ReLU(),
        Dropout("hidden1_dropout"),
        nn.Linear(width, width),
        nn.ReLU(),
        Dropout("hidden2_dropout"),
        nn.Linear(width, 10),
    )
    return Task(
        space=HyperSpace(**started(domains, config)),
        model=model,
        loss=F.cross_entropy,
        train=train,
        valid=valid,
        test=test,
        penalty=L2("weight_decay", biases=False),
    )
