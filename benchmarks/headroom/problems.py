"""The tasks of the suite, each with few training examples, so that regularisation matters.

| task               | network                   | hyperparameters                                              |
|--------------------|---------------------------|--------------------------------------------------------------|
| `mnist1d-1000`     | perceptron                | 3 dropout rates, weight decay                                |
| `mnist1d-4000`     | perceptron                | the same                                                     |
| `mnist1d-cnn`      | 1-d CNN, 1,000 signals    | 4 dropout rates, weight decay                                |
| `fashion-500`      | perceptron                | 3 dropout rates, weight decay                                |
| `fashion-2000`     | perceptron                | the same                                                     |
| `fashion-cnn-500`  | small SimpleCNN           | 4 dropout rates, Cutout (2), weight decay                    |
| `fashion-cnn-2000` | small SimpleCNN           | the same                                                     |
| `cifar10-50`       | CNN, 50 images a class    | 4 dropout rates, affine (3), Cutout (2), weight decay        |
| `protein`          | perceptron, 500 rows      | Gaussian noise, 2 dropout rates, weight decay of 3 layers    |
| `wine`             | perceptron, 500 rows      | the same                                                     |
| `digits-200`       | perceptron                | 3 dropout rates, weight decay                                |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ray_deltastn as rd
from benchmarks.common.toy_data import load
from ray_deltastn.regularizers import Augmentation
from ray_deltastn.tasks.digits import digits
from ray_deltastn.tasks.image_sets import load_images
from ray_deltastn.tasks.mnist1d import mnist1d
from ray_deltastn.tasks.networks import Normalize, simple_cnn

Split = tuple[Tensor, Tensor]
Splits = tuple[Split, Split, Split]

#: Number of validation images and of test images; a CNN has fewer test images, because its passes are slow on a CPU.
VALID_IMAGES, TEST_IMAGES, CNN_TEST_IMAGES = 500, 3000, 1000
#: The same for a regression set; a small set has fewer test rows.
VALID_ROWS, TEST_ROWS = 300, 3000
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_FASHION_MEAN, _FASHION_STD = (0.2860,), (0.3530,)


@dataclass(frozen=True)
class Problem:
    """One task of the suite.

    Attributes:
        splits: function from a seed to the training, validation and test split.
        model: function that builds the network.
        spaces: hyperparameters by name.
        epochs: passes over the training data in each run.
        loss: loss of the network.
        augment: augmentations of the training inputs.
        decays: name of a weight decay → the modules that it penalises; None means all weights.
        images: whether the inputs are colour images, to which TrivialAugment applies.
    """

    splits: Callable[[int], Splits]
    model: Callable[[], nn.Module]
    spaces: dict[str, rd.Hyperparameter]
    epochs: int
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    augment: tuple[Augmentation, ...] = ()
    decays: tuple[tuple[str, tuple[str, ...] | None], ...] = (("weight_decay", None),)
    images: bool = False

    def task(self, splits: Splits, extra: tuple[Augmentation, ...] = ()) -> rd.Task:
        """The task without its test split, which a run must not see.

        Args:
            splits: what `splits` returns.
            extra: more augmentations.
        """
        return rd.Task(
            space=rd.HyperSpace(**self.spaces),
            model=self.model(),
            loss=self.loss,
            train=splits[0],
            valid=splits[1],
            augment=(*self.augment, *extra),
            penalty=tuple(rd.L2(name, biases=False, layers=layers) for name, layers in self.decays),
        )


def rates(count: int) -> dict[str, rd.Hyperparameter]:
    """Dropout rates `dropout0`, …: they start at 0.1, and searches look between 0 and 0.9."""
    return {f"dropout{i}": rd.Bounded(0.1, low=0.0, high=0.95, search=(0.0, 0.9)) for i in range(count)}


def decays(*names: str) -> dict[str, rd.Hyperparameter]:
    """Weight decays: they start at 1e-4, and searches look between 1e-6 and 1e-1."""
    return {name: rd.Positive(1e-4, search=(1e-6, 1e-1)) for name in names}


def perceptron(inputs: int, outputs: int = 10, width: int = 256, first: int = 0) -> nn.Sequential:
    """Perceptron with two hidden layers and dropout before each of its layers from number `first` on."""
    sizes = (inputs, width, width, outputs)
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (before, after) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU()] if i else []
        layers += [rd.Dropout(f"dropout{i - first}")] if i >= first else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def signal_cnn() -> nn.Sequential:
    """1-d CNN on signals of 40 points: three convolutions with stride 2, and a hidden layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        rd.Dropout("dropout0"),
        nn.Conv1d(1, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        rd.Dropout("dropout1"),
        nn.Conv1d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        rd.Dropout("dropout2"),
        nn.Conv1d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(160, 128),
        nn.ReLU(),
        rd.Dropout("dropout3"),
        nn.Linear(128, 10),
    )


def fashion_cnn() -> nn.Sequential:
    """SimpleCNN (H.2.2) with 256 instead of 1,568 hidden units."""
    return nn.Sequential(Normalize(_FASHION_MEAN, _FASHION_STD), simple_cnn(hidden=256))


def cifar_cnn() -> nn.Sequential:
    """CNN on CIFAR-10: three 3×3 convolutions with 16, 32 and 64 filters, each with pooling, and a hidden layer."""
    layers: list[nn.Module] = [Normalize(_CIFAR_MEAN, _CIFAR_STD), rd.Dropout("dropout0")]
    for i, (before, after) in enumerate(pairwise((3, 16, 32, 64)), start=1):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [rd.Dropout(f"dropout{i}")] if i < 3 else []
    layers += [nn.Flatten(), nn.Linear(64 * 4 * 4, 128), nn.ReLU(), rd.Dropout("dropout3"), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


def few_signals(rows: int, seed: int) -> Splits:
    """MNIST-1D with `rows` training signals, 500 for validation and 3,000 for testing."""
    return mnist1d(rows, seed)


def few_images(name: str, count: int, seed: int, flat: bool = False) -> Splits:
    """A balanced choice of `count` training images, 500 for validation, and 3,000 or 1,000 for testing.

    Args:
        name: image set, see `load_images`.
        count: number of training images, a multiple of 10.
        seed: seed of the choice.
        flat: standardise the images, for a perceptron; otherwise they stay uint8, for a CNN.
    """
    (x, y), (x_test, y_test) = load_images(name)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    by_class = [order[y[order] == label] for label in range(10)]
    train = torch.cat([rows[: count // 10] for rows in by_class])
    valid = torch.cat([rows[count // 10 : count // 10 + VALID_IMAGES // 10] for rows in by_class])
    test = torch.randperm(len(x_test), generator=generator)[: TEST_IMAGES if flat else CNN_TEST_IMAGES]
    if flat:
        x, x_test = ((part.float() / 255 - _FASHION_MEAN[0]) / _FASHION_STD[0] for part in (x, x_test))
    return (x[train], y[train]), (x[valid], y[valid]), (x_test[test], y_test[test])


def few_rows(name: str, count: int, seed: int) -> Splits:
    """A regression set with `count` training rows, standardised on them."""
    _, features, target = load(name)
    x, y = torch.from_numpy(features).float(), torch.from_numpy(target).float()[:, None]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train = order[:count]

    def standard(t: Tensor) -> Tensor:
        return (t - t[train].mean(0)) / t[train].std(0).clamp_min(1e-6)

    x, y = standard(x), standard(y)
    valid, test = order[count : count + VALID_ROWS], order[count + VALID_ROWS :][:TEST_ROWS]
    return (x[train], y[train]), (x[valid], y[valid]), (x[test], y[test])


def few_digits(count: int, seed: int) -> Splits:
    """scikit-learn's digits with `count` training images, flat."""
    train, valid, test = digits(seed)
    return (train[0][:count], train[1][:count]), valid, test


_PERCEPTRON = {**rates(3), **decays("weight_decay")}
_CUTOUT: dict[str, rd.Hyperparameter] = {
    "cutout_holes": rd.Integer(1, low=0, high=4),
    "cutout_length": rd.Integer(4, low=0, high=24),
}
_SIGNALS = Problem(partial(few_signals, 1000), partial(perceptron, 40), _PERCEPTRON, epochs=200)
_FASHION = Problem(partial(few_images, "fashion_mnist", 500, flat=True), partial(perceptron, 784), _PERCEPTRON, 200)
_FASHION_CNN = Problem(
    partial(few_images, "fashion_mnist", 500),
    fashion_cnn,
    {**rates(4), **_CUTOUT, **decays("weight_decay")},
    epochs=30,
    augment=(rd.Cutout("cutout_holes", "cutout_length", fill=_FASHION_MEAN),),
)
_LAYERS = (("decay0", ("1",)), ("decay1", ("4",)), ("decay2", ("7",)))


def _regression(name: str) -> Problem:
    _, features, _ = load(name)
    return Problem(
        partial(few_rows, name, 500),
        partial(perceptron, features.shape[1], 1, first=1),
        {"noise": rd.Bounded(0.05, low=0.0, high=2.0), **rates(2), **decays("decay0", "decay1", "decay2")},
        epochs=250,
        loss=F.mse_loss,
        augment=(rd.GaussianNoise("noise"),),
        decays=_LAYERS,
    )


#: Name → function that makes the problem; it may read the data.
SUITE: dict[str, Callable[[], Problem]] = {
    "mnist1d-1000": lambda: _SIGNALS,
    "mnist1d-4000": lambda: Problem(partial(few_signals, 4000), _SIGNALS.model, _PERCEPTRON, epochs=80),
    "mnist1d-cnn": lambda: Problem(
        partial(few_signals, 1000), signal_cnn, {**rates(4), **decays("weight_decay")}, epochs=120
    ),
    "fashion-500": lambda: _FASHION,
    "fashion-2000": lambda: Problem(
        partial(few_images, "fashion_mnist", 2000, flat=True), _FASHION.model, _PERCEPTRON, epochs=80
    ),
    "fashion-cnn-500": lambda: _FASHION_CNN,
    "fashion-cnn-2000": lambda: Problem(
        partial(few_images, "fashion_mnist", 2000),
        fashion_cnn,
        _FASHION_CNN.spaces,
        epochs=12,
        augment=_FASHION_CNN.augment,
    ),
    "cifar10-50": lambda: Problem(
        partial(few_images, "cifar10", 500),
        cifar_cnn,
        {
            **rates(4),
            "translation": rd.Bounded(0.05, low=0.0, high=0.5),
            "scaling": rd.Bounded(0.05, low=0.0, high=0.5),
            "rotation": rd.Bounded(1.0, low=0.0, high=45.0),
            **_CUTOUT,
            **decays("weight_decay"),
        },
        epochs=30,
        augment=(
            rd.RandomAffine(degrees="rotation", translate="translation", scale="scaling"),
            rd.Cutout("cutout_holes", "cutout_length", fill=_CIFAR_MEAN),
        ),
        images=True,
    ),
    "protein": lambda: _regression("protein-tertiary-structure"),
    "wine": lambda: _regression("wine-quality-red"),
    "digits-200": lambda: Problem(partial(few_digits, 200), partial(perceptron, 64), _PERCEPTRON, epochs=300),
}
