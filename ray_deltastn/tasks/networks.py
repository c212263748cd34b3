"""The networks of the paper with their regularisers (Appendix H.2).

Dropout rates are numbered from the input: `dropout0` acts on the images. `kind` is the dropout on feature maps:
`Dropout` drops elements, as the paper says, and `ChannelDropout` drops channels, as in the authors' code.
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
    """Standardise images per channel: (x − mean) / std. uint8 images are divided by 255 first.

    It is the first layer of a model, so that augmentations get images in [0, 1].

    Args:
        mean: one value per channel.
        std: one positive value per channel.

    Raises:
        ValueError: if `mean` and `std` have different lengths, or a standard deviation is not positive.
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
        """Invert `forward`: images (B, C, H, W) in [0, 1]."""
        return x * self.std + self.mean


def mlp(inputs: int = 784, hidden: Sequence[int] = (1200, 1200, 1200), classes: int = 10) -> nn.Sequential:
    """Perceptron of H.2.1, with dropout on the input of each hidden layer: `dropout0` to `dropout<n−1>`.

    The paper has three rates and three hidden layers, so the units of the last hidden layer have no dropout.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [inputs, *hidden]
    for index, (before, after) in enumerate(zip(sizes, hidden, strict=False)):
        layers += [Dropout(f"dropout{index}"), nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def simple_cnn(
    channels: int = 1, classes: int = 10, kind: type[Dropout] = Dropout, hidden: int = 1568
) -> nn.Sequential:
    """SimpleCNN of H.2.2 on 28×28 images: two 5×5 convolutions (16, 32 filters), one hidden layer of 1568 units.

    §5.2 of the paper gives 32 and 64 filters, H.2.2 gives 16 and 32. Only H.2.2 agrees with the 1568 = 32·7·7 units of
    the paper. `dropout0` acts on the input, and `dropout1` to `dropout3` act after each hidden layer.
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
        nn.Linear(32 * 7 * 7, hidden),
        nn.ReLU(),
        Dropout("dropout3"),
        nn.Linear(hidden, classes),
    )


def alexnet(channels: int = 3, classes: int = 10, kind: type[Dropout] = Dropout) -> nn.Sequential:
    """AlexNet for 32×32 images: five 3×3 convolutions and two hidden layers of 4096 units.

    The paper gives no sizes. The sizes here are those of the self-tuning networks on which the paper builds: 64, 192,
    384, 256, 256 filters, stride 2 in the first convolution, and pooling after the first, second and fifth. `dropout0`
    acts on the input, and `dropout1` to `dropout7` act after each hidden layer.
    """
    filters, pooled = (64, 192, 384, 256, 256), (1, 2, 5)
    layers: list[nn.Module] = [Dropout("dropout0")]
    for number, (before, after) in enumerate(zip((channels, *filters), filters, strict=False), start=1):
        layers += [nn.Conv2d(before, after, 3, stride=2 if number == 1 else 1, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * (number in pooled) + [kind(f"dropout{number}")]
    return nn.Sequential(*layers, *_two_hidden(256 * 2 * 2, 4096, classes, first=6))


def vgg16(channels: int = 3, classes: int = 10, kind: type[Dropout] = Dropout) -> nn.Sequential:
    """VGG16 for 32×32 images: thirteen 3×3 convolutions and two hidden layers of 512 units, no batch normalisation.

    The paper gives no sizes. The sizes here are those of the authors' code. `dropout0` acts on the input, and
    `dropout1` to `dropout15` act after each hidden layer. Convolutions are initialised with N(0, 2 / (9·filters)).
    With PyTorch's initial weights the signal vanishes in such a deep network.
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
    """ResNet-18 for 32×32 images, with dropout on the input and after each of its eight blocks."""
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    number = 0
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for index in range(len(stage)):
            number += 1
            stage[index] = nn.Sequential(stage[index], kind(f"dropout{number}"))
    return nn.Sequential(Dropout("dropout0"), network)
