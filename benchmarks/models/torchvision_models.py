"""Networks of torchvision: their own classes with few channels and blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCN, FCNHead

from benchmarks.models.entry import Entry, images


def resnet() -> Any:
    """ResNet-18 as it is."""
    return models.resnet18(num_classes=3)


def mobilenet() -> Any:
    """MobileNetV3 with three blocks, with squeeze and excitation and both activations."""
    block = partial(InvertedResidualConfig, width_mult=1.0)
    settings = [
        block(8, 3, 16, 8, True, "RE", 2, 1),
        block(8, 3, 24, 16, False, "RE", 2, 1),
        block(16, 5, 32, 16, True, "HS", 1, 1),
    ]
    return models.MobileNetV3(settings, last_channel=32, num_classes=3)


def efficientnet() -> Any:
    """EfficientNet with both kinds of blocks."""
    settings = [FusedMBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2)]
    return models.EfficientNet(settings, dropout=0.2, num_classes=3, last_channel=32)


def convnext() -> Any:
    """ConvNeXt with two stages."""
    return models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3)


def swin() -> Any:
    """Swin with two stages, shifted windows and dropout."""
    return models.SwinTransformer(
        [2, 2], 16, [2, 2], [2, 4], window_size=[4, 4], dropout=0.1, attention_dropout=0.1, num_classes=3
    )


def vit() -> Any:
    """A vision transformer with two blocks."""
    return models.VisionTransformer(32, 8, 2, 2, 16, 32, dropout=0.1, attention_dropout=0.1, num_classes=3)


def segmenter(head: Callable[..., nn.Module]) -> Any:
    """A segmentation network on four convolutions."""
    layers = [
        m for a, b in ((3, 8), (8, 16)) for m in (nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    ]

    class Backbone(nn.Sequential):
        """Feature maps by name, as torchvision's backbones return them."""

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            """The last feature map."""
            return {"out": super().forward(x)}

    return FCN(Backbone(*layers), head(16, 3))


def masks(count: int) -> tuple[Tensor, Tensor]:
    """Random images and a class for each pixel."""
    return images(count)[0], torch.randint(0, 3, (count, 32, 32))


def per_pixel(output: Any, target: Tensor) -> Tensor:
    """Cross entropy of the main output."""
    return F.cross_entropy(output["out"], target)


TORCHVISION = [
    Entry("ResNet-18", "torchvision", resnet, images),
    Entry("MobileNetV3", "torchvision", mobilenet, images),
    Entry("EfficientNet", "torchvision", efficientnet, images),
    Entry("ConvNeXt", "torchvision", convnext, images),
    Entry("Swin", "torchvision", swin, images, attributes=("attention_dropout", "dropout")),
    Entry("ViT", "torchvision", vit, images, attributes=("dropout",)),
    Entry("FCN", "torchvision", partial(segmenter, FCNHead), masks, per_pixel),
    Entry("DeepLabV3", "torchvision", partial(segmenter, partial(DeepLabHead, atrous_rates=(2,))), masks, per_pixel),
]
