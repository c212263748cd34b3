"""Tasks with one hyperparameter, the dropout rate of the input (I.1), as in Figure 14 and Table 4.

    python -m benchmarks.images --task benchmarks.single_dropout:mnist --set images=10000 --set tune_scale=false …
    python -m benchmarks.images --task benchmarks.single_dropout:digits --set tune_scale=false …

`mnist` trains the paper's perceptron with three hidden layers. `digits` trains a small perceptron on scikit-learn's
1,797 images of 8×8 pixels, and is meant for a CPU.

With `--method fixed --set perturbed=true` the constant rate is perturbed as in the training of STN and Δ-STN: each
example of each minibatch has the rate s(λ + ε) with its own ε ~ N(0, σ²). This is our reading of "w/ Gaussian Noise"
in Table 4. The paper gives no more detail. σ is `perturbation_scale`; the default is 1, the paper's value for this
experiment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import ray_deltastn as rd
from ray_deltastn.tasks import images
from ray_deltastn.tasks.digits import digits as digits_data
from ray_deltastn.tasks.options import flag, started, whole

NAME = "dropout0"


class PerturbedDropout(rd.Dropout):
    """Dropout with a constant rate s(λ) that is perturbed: each example of each pass has its own rate s(λ + ε).

    ε ~ N(0, σ²) with the σ of the space, which contains one hyperparameter. For the method `fixed` only, because the
    other methods perturb the rate themselves.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, …) after dropout in training mode, of the same shape."""
        if not self.training:
            return x
        source, space = self.pass_values, self.pass_values.space
        lam = space.inverse(source.values[NAME][None])  # (1,)
        eps = space.sample(len(x), source.generator).detach()  # (B, 1)
        p = space.values(lam + eps).to(x).view(-1, *(1,) * (x.dim() - 1))
        keep = source.rand(*x.shape, like=x) >= p
        return x * keep / (1 - p)


def mnist(config: Mapping[str, Any]) -> rd.Task:
    """Perceptron 784-1200-1200-1200-10 on MNIST; it reads `perturbed` and the same options as `mnist-mlp`."""
    layer = _layer(config)
    recipe = replace(images.MNIST_MLP, network=lambda kind: perceptron(784, 1200, 1200, 1200, layer=layer))
    return images.image_task(recipe, config)


def digits(config: Mapping[str, Any]) -> rd.Task:
    """Perceptron 64-`width`-`width`-10 on digits; it reads `perturbed` and the same options as `digits-mlp`."""
    layer = _layer(config)
    width = whole(config, "width", 256, least=1)
    train, valid, test = digits_data(whole(config, "split_seed", 0))
    space = rd.HyperSpace(**started({NAME: rd.Bounded(0.05, low=0.0, high=0.95)}, config))
    return rd.Task(
        space=space,
        model=perceptron(64, width, width, layer=layer),
        loss=F.cross_entropy,
        train=train,
        valid=valid,
        test=test,
    )


def perceptron(*sizes: int, layer: type[rd.Dropout] = rd.Dropout) -> nn.Sequential:
    """Perceptron with ten outputs and input dropout with the rate `dropout0`."""
    layers: list[nn.Module] = [nn.Flatten(), layer(NAME)]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


def _layer(config: Mapping[str, Any]) -> type[rd.Dropout]:
    """The dropout layer of a config.

    Raises:
        ValueError: if `perturbed` is not true or false, or is true for a method that perturbs the rate itself.
    """
    if not flag(config, "perturbed"):
        return rd.Dropout
    if config.get("method") != "fixed":
        raise ValueError(f"`perturbed` needs `method: fixed`, got method={config.get('method')!r}")
    return PerturbedDropout
