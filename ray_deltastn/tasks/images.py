"""Ready tasks of §5.2 and H.2: MNIST, FashionMNIST and CIFAR-10 with the paper's networks and hyperparameters.

| task               | hyperparameters | dropout            | Cutout | colour and affine |
|--------------------|-----------------|--------------------|--------|-------------------|
| `mnist-mlp`        | 3               | input, 2 hidden    |        |                   |
| `fashion-cnn`      | 6               | input, 3 hidden    | 2      |                   |
| `cifar10-alexnet`  | 18              | input, 7 hidden    | 2      | 4 + 4             |
| `cifar10-vgg16`    | 26              | input, 15 hidden   | 2      | 4 + 4             |
| `cifar10-resnet18` | 19              | input, 8 blocks    | 2      | 4 + 4             |

H.2.3 also lists "scaling noise applied to the input", but §5.2 does not. With it all three CIFAR-10 networks would have
one hyperparameter more than the paper counts. So it is off by default, and `scaling_noise: true` adds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ray_deltastn.domains import Bounded, Hyperparameter, Integer
from ray_deltastn.regularizers import (
    Augmentation,
    ChannelDropout,
    ColorJitter,
    Cutout,
    Dropout,
    RandomAffine,
    RandomHorizontalFlip,
    Regularizer,
    ScalingNoise,
)
from ray_deltastn.space import HyperSpace
from ray_deltastn.task import Task
from ray_deltastn.tasks import networks
from ray_deltastn.tasks.image_sets import Split, load_images
from ray_deltastn.tasks.options import flag, number, started, whole


@dataclass(frozen=True)
class ImageRecipe:
    """The properties in which the image tasks differ.

    Attributes:
        images: name of the image set.
        network: function that builds the network from the kind of dropout on its feature maps.
        valid_share: share of the training set that is held out for validation.
        mean: mean of each channel of the training images, in [0, 1].
        std: standard deviation of each channel of the training images.
        cutout: whether Cutout is tuned.
        distort: whether colour jitter and affine distortion are tuned.
    """

    images: str
    network: Callable[[type[Dropout]], nn.Module]
    valid_share: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cutout: bool = False
    distort: bool = False


MNIST_MLP = ImageRecipe("mnist", lambda kind: networks.mlp(), 0.15, (0.1307,), (0.3081,))
FASHION_CNN = ImageRecipe(
    "fashion_mnist", lambda kind: networks.simple_cnn(kind=kind), 0.15, (0.2860,), (0.3530,), cutout=True
)
CIFAR10_ALEXNET = ImageRecipe(
    "cifar10",
    lambda kind: networks.alexnet(kind=kind),
    0.20,
    (0.4914, 0.4822, 0.4465),
    (0.2470, 0.2435, 0.2616),
    cutout=True,
    distort=True,
)
CIFAR10_VGG16 = replace(CIFAR10_ALEXNET, network=lambda kind: networks.vgg16(kind=kind))
CIFAR10_RESNET18 = replace(CIFAR10_ALEXNET, network=lambda kind: networks.resnet18(kind=kind))


def mnist_mlp(config: Mapping[str, Any]) -> Task:
    """Ready task `mnist-mlp` (H.2.1): 3 dropout rates of a 784-1200-1200-1200-10 perceptron; see `image_task`."""
    return image_task(MNIST_MLP, config)


def fashion_cnn(config: Mapping[str, Any]) -> Task:
    """Ready task `fashion-cnn` (H.2.2): 4 dropout rates and Cutout of SimpleCNN, 6 in all; see `image_task`."""
    return image_task(FASHION_CNN, config)


def cifar10_alexnet(config: Mapping[str, Any]) -> Task:
    """Ready task `cifar10-alexnet` (H.2.3): 18 hyperparameters of AlexNet; see `image_task`."""
    return image_task(CIFAR10_ALEXNET, config)


def cifar10_vgg16(config: Mapping[str, Any]) -> Task:
    """Ready task `cifar10-vgg16` (H.2.3): 26 hyperparameters of VGG16; see `image_task`."""
    return image_task(CIFAR10_VGG16, config)


def cifar10_resnet18(config: Mapping[str, Any]) -> Task:
    """Ready task `cifar10-resnet18` (H.2.3): 19 hyperparameters of ResNet-18; see `image_task`."""
    return image_task(CIFAR10_RESNET18, config)


def image_task(recipe: ImageRecipe, config: Mapping[str, Any]) -> Task:
    """Load the data of a recipe, split it and build its task.

    Args:
        recipe: properties of the task.
        config: options of the task: `data_root` (see `load_images`), `split_seed` (default 0), `images` (number of
            images for training and validation together, default all), and the options of `task_of`.

    Raises:
        ValueError: if an option breaks its rule.
        FileNotFoundError: if the data are missing.
    """
    train, test = load_images(recipe.images, config.get("data_root"))
    images = None if config.get("images") is None else whole(config, "images", 0, least=1)
    train, valid = hold_out(train, recipe.valid_share, whole(config, "split_seed", 0), images)
    return task_of(recipe, train, valid, test, config)


def hold_out(split: Split, share: float, seed: int, images: int | None = None) -> tuple[Split, Split]:
    """Permute a split, keep its first `images` examples, and hold out the last `share` of them for validation.

    Args:
        split: images and labels.
        share: share that is held out, in (0, 1).
        seed: seed of the permutation.
        images: number of examples to keep. None means all.

    Returns:
        The training part and the validation part.

    Raises:
        ValueError: if `images` is larger than the split, or if a part would be empty.
    """
    x, y = split
    used = len(x) if images is None else images
    held = round(share * used)
    if not 0 < held < used <= len(x):
        raise ValueError(
            f"`images` must be at most {len(x)} and leave both parts at least one image, got images={used} with a "
            f"share of {share:g} for validation"
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:used]
    train, valid = order[: used - held], order[used - held :]
    return (x[train], y[train]), (x[valid], y[valid])


def task_of(recipe: ImageRecipe, train: Split, valid: Split, test: Split, config: Mapping[str, Any]) -> Task:
    """The task of a recipe on given images.

    `config` has these options:

    - `initial_values`: name → initial value. The default values are those of the paper.
    - `perturbation_scale`: initial σ of all hyperparameters; by default that of their maps.
    - `channel_dropout`: true drops whole channels of feature maps, as in the authors' code. False, the default, drops
      elements, as the paper says.
    - `flip`, for CIFAR-10: constant probability of a horizontal flip, default 0, as the paper says. The authors' code
      uses 0.5.
    - `scaling_noise`, for CIFAR-10: true also tunes scaling noise; default false.

    Args:
        recipe: properties of the task.
        train: training images (n, C, H, W), uint8 or in [0, 1], and labels (n,).
        valid: the same for validation.
        test: the same for testing.
        config: options of the task.

    Raises:
        ValueError: if `initial_values` names an unknown hyperparameter, or an option breaks its rule.
    """
    model = nn.Sequential(
        networks.Normalize(recipe.mean, recipe.std),
        recipe.network(ChannelDropout if flag(config, "channel_dropout") else Dropout),
    )
    domains: dict[str, Hyperparameter] = {
        m.names[0]: Bounded(0.05, low=0.0, high=0.95, search=(0.0, 0.85))
        for m in model.modules()
        if isinstance(m, Regularizer)
    }
    augment: list[Augmentation] = []
    if recipe.distort:
        noisy = flag(config, "scaling_noise")
        domains |= _distortions(noisy)
        augment += _distort(number(config, "flip", 0.0), noisy)
    if recipe.cutout:
        domains |= {"cutout_holes": Integer(1, low=0, high=4), "cutout_length": Integer(4, low=0, high=24)}
        augment.append(Cutout("cutout_holes", "cutout_length", fill=recipe.mean))
    return Task(
        space=HyperSpace(**started(domains, config)),
        model=model,
        loss=F.cross_entropy,
        train=train,
        valid=valid,
        test=test,
        augment=augment,
    )


def _distortions(scaling_noise: bool) -> dict[str, Hyperparameter]:
    """Domains of H.2.3. Each starts at 0.05, and so do rotation and shear, which are in degrees."""
    highs = {"hue": 0.5, "saturation": 1.0, "brightness": 1.0, "contrast": 1.0}
    highs |= {"translation": 0.5, "scaling": 0.5, "rotation": 45.0, "shear": 45.0}
    highs |= {"scaling_noise": 1.0} if scaling_noise else {}
    return {name: Bounded(0.05, low=0.0, high=high) for name, high in highs.items()}


def _distort(flip: float, scaling_noise: bool) -> list[Augmentation]:
    """Horizontal flip, affine distortion, colour jitter and scaling noise, in this order."""
    augment: list[Augmentation] = [RandomHorizontalFlip(flip)] if flip else []
    augment += [
        RandomAffine(degrees="rotation", translate="translation", scale="scaling", shear="shear"),
        ColorJitter(brightness="brightness", contrast="contrast", saturation="saturation", hue="hue"),
    ]
    return augment + ([ScalingNoise("scaling_noise")] if scaling_noise else [])
