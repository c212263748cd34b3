"""The image tasks on a few images made up here."""

import torch

from ray_deltastn.tasks import images
from ray_deltastn.tasks.images import task_of

RECIPES = {
    "mnist-mlp": images.MNIST_MLP,
    "fashion-cnn": images.FASHION_CNN,
    "cifar10-alexnet": images.CIFAR10_ALEXNET,
    "cifar10-vgg16": images.CIFAR10_VGG16,
    "cifar10-resnet18": images.CIFAR10_RESNET18,
}
#: Hyperparameters of each task, as many as in the paper (H.2).
COUNTS = {
    "mnist-mlp": 3,
    "fashion-cnn": 6,
    "cifar10-alexnet": 18,
    "cifar10-vgg16": 26,
    "cifar10-resnet18": 19,
}


def made_up(name, count=4, seed=0):
    """`count` images in bytes, of the shape of the task's set, and labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 32, 32) if name.startswith("cifar10") else (1, 28, 28)
    x = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return x, torch.randint(0, 10, (count,), generator=generator)


def task(name, count=4, **config):
    parts = [made_up(name, count, seed) for seed in range(3)]
    return task_of(RECIPES[name], *parts, config)
