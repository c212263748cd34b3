"""The paper's networks, with their regularisers (Appendix H.2).

Dropout rates are numbered from the input on: `dropout0` acts on the images. `kind` is the dropout on feature maps: of
elements (`Dropout`, as the text reads) or of channels (`ChannelDropout`, as in the code the authors released).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from ray_deltastn.regularizers import Dropout
from ray_deltastn.regularizers.strength import as_float


class Normalize(nn.Module):
    """Standardise images per channel: (x − mean) / std; bytes are divided by 255 first.

    A model's first layer, so that augmentation before it sees images in [0, 1].

    Args:
        mean: one value per channel.
        std: one positive value per channel.

    Raises:
        ValueError: if there are not as many of the one as of the other, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(f"`len(mean) == len(std)` and `std > 0` must hold, got mean={mean}, std={std}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Standardised images (B, C, H, W)."""
        return (as_float(x) - self.mean) / self.std

    def undo(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) as they were before."""
        return x * self.std + self.mean


def mlp(inputs: int = 784, hidden: Sequence[int] = (1200, 1200, 1200), classes: int = 10) -> nn.Sequential:
    """Perceptron of H.2.1, with dropout on the input of each hidden layer: `dropout0` to `dropout<n−1>`.

    The paper has three rates and three hidden layers, so the last hidden layer's units are not dropped.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [inputs, *hidden]
    for index, (before, after) in enumerate(zip(sizes, hidden, strict=False)):
        layers += [Dropout(f"dropout{index}"), nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def simple_cnn(channels: int = 1, classes: int = 10, kind: type[Dropout] = Dropout) -> nn.Sequential:
    """SimpleCNN of H.2.2 on 28×28 images: two 5×5 convolutions (16, 32 filters), one hidden layer of 1568 units.

    The paper gives 32 and 64 filters in §5.2, 16 and 32 in H.2.2; the second fits its 1568 = 32·7·7 units. Dropout
    `dropout0` acts on the input, `dropout1` to `dropout3` after each hidden layer.
    """
    return nn.Sequential(
        Dropout("dropout0"),
        nn.Conv2d(channels, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        kind("dropout1"),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        kind("dropout2"),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 1568),
        nn.ReLU(),
        Dropout("dropout3"),
        nn.Linear(1568, classes),
    )


def alexnet(channels: int = 3, classes: int = 10, kind: type[Dropout] = Dropout) -> nn.Sequential:
    """AlexNet for 32×32 images: five 3×3 convolutions and two hidden layers of 4096 units.

    The paper gives no sizes; these are those of the self-tuning networks it builds on: 64, 192, 384, 256, 256 filters,
    the first with stride 2, and pooling after the first, second and fifth. Dropout `dropout0` acts on the input,
    `dropout1` to `dropout7` after each hidden layer.
    """
    filters, pooled = (64, 192, 384, 256, 256), (1, 2, 5)
    layers: list[nn.Module] = [Dropout("dropout0")]
    for number, (before, after) in enumerate(zip((channels, *filters), filters, strict=False), start=1):
        layers += [nn.Conv2d(before, after, 3, stride=2 if number == 1 else 1, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * (number in pooled) + [kind(f"dropout{number}")]
    return nn.Sequential(*layers, *_two_hidden(256 * 2 * 2, 4096, classes, first=6))


def vgg16(channels: int = 3, classes: int = 10, kind: type[Dropout] = Dropout) -> nn.Sequential:
    """VGG16 for 32×32 images: thirteen 3×3 convolutions and two hidden layers of 512 units, no batch normalisation.

    The paper gives no sizes; these are those of the code its authors released. Dropout `dropout0` acts on the input,
    `dropout1` to `dropout15` after each hidden layer. Convolutions start from N(0, 2 / (9·filters)): from PyTorch's
    own initial weights the signal fades in so deep a network.
    """
    filters, pooled = (64, 64, 128, 128, *(256,) * 3, *(512,) * 6), (2, 4, 7, 10, 13)
    layers: list[nn.Module] = [Dropout("dropout0")]
    for number, (before, after) in enumerate(zip((channels, *filters), filters, strict=False), start=1):
        convolution = nn.Conv2d(before, after, 3, padding=1)
        nn.init.normal_(convolution.weight, std=math.sqrt(2 / (9 * after)))
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers += [convolution, nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * (number in pooled) + [kind(f"dropout{number}")]
    return nn.Sequential(*layers, *_two_hidden(512, 512, classes, first=14))


def _two_hidden(inputs: int, width: int, classes: int, first: int) -> list[nn.Module]:
    return [
        nn.Flatten(),
        nn.Linear(inputs, width),
        nn.ReLU(),
        Dropout(f"dropout{first}"),
        nn.Linear(width, width),
        nn.ReLU(),
        Dropout(f"dropout{first + 1}"),
        nn.Linear(width, classes),
    ]


def resnet18(classes: int = 10, kind: type[Dropout] = Dropout) -> nn.Module:
    """ResNet-18 in its form for 32×32 images, with dropout on the input and after each of its eight blocks."""
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    number = 0
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for index in range(len(stage)):
            number += 1
            stage[index] = nn.Sequential(stage[index], kind(f"dropout{number}"))
    return nn.Sequential(Dropout("dropout0"), network)
