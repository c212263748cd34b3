"""The rule of each layer kind: values and gradients."""

import pytest
import torch
from torch import nn

from ray_deltastn.response import Response
from ray_deltastn.response.kinds import KINDS, kind_of
from tests.networks import WORDS
from tests.oracles import (
    assert_close,
    randomise,
)
from tests.response.attached import MODES, H, predict

LEAVES = {
    "linear": (lambda: nn.Linear(3, 4), (2, 3), 4),
    "linear-middle": (lambda: nn.Linear(3, 4), (2, 2, 2, 3), 4),
    "bilinear": (lambda: nn.Bilinear(3, 2, 4), (2, 3), 4),
    "conv1d": (lambda: nn.Conv1d(2, 4, 2, groups=2, stride=2), (2, 2, 5), 4),
    "conv2d": (lambda: nn.Conv2d(2, 3, 2, padding=1, padding_mode="circular"), (2, 2, 3, 3), 3),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, dilation=2, padding="same"), (2, 1, 2, 2, 2), 2),
    "conv-transpose": (lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2), (2, 2, 3, 3), 4),
    "embedding-bag": (lambda: nn.EmbeddingBag(WORDS, 3, mode="mean"), (2, 4), 3),
    "instancenorm": (lambda: nn.InstanceNorm2d(3, affine=True), (2, 3, 3, 3), 3),
    "prelu": (lambda: nn.PReLU(3), (2, 3, 4), 3),
    "embedding": (lambda: nn.Embedding(WORDS, 3), (2, 4), 3),
    "batchnorm-eval": (lambda: nn.BatchNorm1d(3).eval(), (3, 3), 3),
    "batchnorm-train": (lambda: nn.BatchNorm2d(2), (3, 2, 2, 2), 2),
    "layernorm": (lambda: nn.LayerNorm((2, 3)), (2, 2, 2, 3), 6),
    "groupnorm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3), 4),
    "rmsnorm": (lambda: nn.RMSNorm(4, eps=1e-3), (2, 3, 4), 4),
}


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.tanh(self.layer(x, *more(self.layer, x)))


def leaf(name):
    torch.manual_seed(0)
    build, shape, rows = LEAVES[name]
    layer = build().double()
    integer = isinstance(layer, nn.Embedding | nn.EmbeddingBag)
    x = torch.randint(0, WORDS, shape) if integer else torch.randn(shape, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    return layer, x, torch.randn(shape[0], rows, dtype=torch.float64, requires_grad=True)


def more(layer, x):
    """Further arguments of the layer."""
    return (torch.sin(x[..., :2]),) if isinstance(layer, nn.Bilinear) else ()


def test_leaf_cases_cover_the_table_of_kinds():
    assert {kind_of(leaf(name)[0]) for name in LEAVES} == set(KINDS)


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_rule_passes_gradcheck(name):
    layer, x, rows = leaf(name)
    kind = kind_of(layer)
    direction = torch.randn_like(layer.weight, requires_grad=True)

    def change(direction, rows, x):
        output = kind.apply(layer, x, direction, *more(layer, x))
        return output * kind.place(layer, rows, output)

    if x.is_floating_point():
        assert torch.autograd.gradcheck(change, (direction, rows, x))
    else:
        assert torch.autograd.gradcheck(lambda direction, rows: change(direction, rows, x), (direction, rows))


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_rule_is_the_layer_without_bias_and_linear_in_the_weight(name):
    layer, x, _ = leaf(name)
    kind = kind_of(layer)
    other = torch.randn_like(layer.weight)
    bias = getattr(layer, "bias", None)
    output = kind.apply(layer, x, layer.weight, *more(layer, x))
    whole = output if bias is None else output + kind.place(layer, bias.reshape(1, -1), output)
    whole = whole + x.clamp(min=0) if isinstance(layer, nn.PReLU) else whole
    assert_close(whole, layer(x, *more(layer, x)), rtol=1e-12)
    combined = kind.apply(layer, x, 2.0 * layer.weight + other, *more(layer, x))
    assert_close(combined, 2.0 * output + kind.apply(layer, x, other, *more(layer, x)), rtol=1e-12)


@pytest.mark.parametrize("name", LEAVES)
@MODES
def test_layer_passes_gradcheck_in_theta_and_displacement(name, linearised):
    layer, x, _ = leaf(name)
    x = x.detach()
    model = nn.Sequential(layer, nn.Flatten(), nn.Tanh())
    if more(layer, x):
        model = Twice(layer)
    response = randomise(Response(model, H))
    delta = torch.randn(x.shape[0], H, dtype=torch.float64, requires_grad=True)

    def prediction(*inputs):  # gradcheck changes the parameters in place
        return predict(model, response, inputs[-1], x, linearised)

    assert torch.autograd.gradcheck(prediction, (*response.parameters(), delta))
