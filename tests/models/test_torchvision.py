"""Networks of torchvision train as they are, and their responses are exact."""

import pytest

from benchmarks.models.torchvision_models import TORCHVISION
from tests.models.checked import cases, check

#: Least share of the weights that respond.
FLOORS = {
    "ResNet-18": 1.0,
    "MobileNetV3": 1.0,
    "EfficientNet": 1.0,
    "ConvNeXt": 1.0,
    "Swin": 0.97,
    "ViT": 1.0,
    "FCN": 1.0,
    "DeepLabV3": 1.0,
}


@pytest.mark.parametrize(("entry", "floor"), cases(TORCHVISION, FLOORS, slow=["ResNet-18"]))
def test_a_network_trains_and_its_response_is_exact(entry, floor):
    check(entry, floor)
