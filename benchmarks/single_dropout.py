"""Tasks with one hyperparameter, the dropout rate of the input (I.1), as in Figure 14 and Table 4.

    python -m benchmarks.images --task benchmarks.single_dropout:mnist --set images=10000 --set tune_scale=false …
    python -m benchmarks.images --task benchmarks.single_dropout:digits --set tune_scale=false …

`mnist` trains the paper's perceptron with three hidden layers. `digits` trains a small perceptron on scikit-learn's
1,797 images of 8×8 pixels, and is meant for a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.tasks import images
from ray_deltastn.tasks.digits import digits as digits_data
from ray_deltastn.tasks.options import started, whole


def mnist(config: Mapping[str, Any]) -> rd.Task:
    """Perceptron 784-1200-1200-1200-10 on MNIST; it reads the same options as `mnist-mlp`."""
    recipe = replace(images.MNIST_MLP, network=lambda kind: perceptron(784, 1200, 1200, 1200))
    return images.image_task(recipe, config)


def digits(config: Mapping[str, Any]) -> rd.Task:
    """Perceptron 64-`width`-`width`-10 on digits; it reads the same options as `digits-mlp`."""
    width = whole(config, "width", 256, least=1)
    train, valid, test = digits_data(whole(config, "split_seed", 0))
    space = rd.HyperSpace(**started({"dropout0": rd.Bounded(0.05, low=0.0, high=0.95)}, config))
    return rd.Task(
        space=space, model=perceptron(64, width, width), loss=F.cross_entropy, train=train, valid=valid, test=test
    )


def perceptron(*sizes: int) -> nn.Sequential:
    """Perceptron with ten outputs and input dropout with the rate `dropout0`."""
    layers: list[nn.Module] = [nn.Flatten(), rd.Dropout("dropout0")]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))
