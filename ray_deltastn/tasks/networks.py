"""The paper's networks, with their regularisers (Appendix H.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from ray_deltastn.regularizers import Dropout


def mlp(inputs: int = 784, hidden: Sequence[int] = (1200, 1200, 1200), classes: int = 10) -> nn.Sequential:
    """Perceptron with dropout on the input and after each hidden layer: `dropout0` to `dropout<n>`."""
    layers: list[nn.Module] = [nn.Flatten(), Dropout("dropout0")]
    sizes = [inputs, *hidden]
    for index, (before, after) in enumerate(zip(sizes, hidden, strict=False), start=1):
        layers += [nn.Linear(before, after), nn.ReLU(), Dropout(f"dropout{index}")]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def simple_cnn(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """SimpleCNN of H.2.2 on 28×28 images: two 5×5 convolutions (16, 32 filters), two layers of 1568 units.

    Dropout `dropout0` acts on the input, `dropout1` to `dropout3` after each hidden layer but the first.
    """
    return nn.Sequential(
        Dropout("dropout0"),
        nn.Conv2d(channels, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Dropout("dropout1"),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        Dropout("dropout2"),
        nn.Linear(32 * 7 * 7, 1568),
        nn.ReLU(),
        Dropout("dropout3"),
        nn.Linear(1568, classes),
    )


def resnet18(classes: int = 10) -> nn.Module:
    """ResNet-18 in its form for 32×32 images, with dropout on the input and after each of its eight blocks."""
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    number = 0
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for index in range(len(stage)):
            number += 1
            stage[index] = nn.Sequential(stage[index], Dropout(f"dropout{number}"))
    return nn.Sequential(Dropout("dropout0"), network)
