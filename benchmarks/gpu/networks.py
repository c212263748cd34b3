"""Networks, data and runs for the checks and the measurements. `tiny` ones are for a test on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ray_deltastn as rd
from benchmarks.common import sequence_networks as sequences
from ray_deltastn.tasks import networks

Split = tuple[Tensor, Tensor]

#: Dropout rate of the networks at the start of a run, and of plain training.
RATE = 0.05
NETS = ("mlp", "cnn", "resnet18", "transformer")


def residual() -> nn.Module:
    """A network with a residual block and batch normalisation, in the place of ResNet-18 for a test on a CPU."""
    return nn.Sequential(
        rd.Dropout("dropout0"),
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(4),
        rd.Dropout("dropout1"),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 10),
    )


def network(net: str, tiny: bool) -> nn.Module:
    """A new network.

    Args:
        net: one of `NETS`.
        tiny: whether it is small.
    """
    make: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: networks.mlp(hidden=(32,) * 3 if tiny else (1200,) * 3),
        "cnn": lambda: networks.simple_cnn(hidden=32 if tiny else 1568),
        "resnet18": residual if tiny else networks.resnet18,
        "transformer": sequences.Transformer,
    }
    return make[net]()


def pictures(count: int, channels: int, side: int, seed: int, noise: float = 1.0, wrong: float = 0.0) -> Split:
    """Made-up images of ten classes: a smooth picture for each class, with noise.

    Args:
        count: number of images.
        channels: channels of an image.
        side: pixels of a side, a multiple of 4.
        seed: seed of the noise and of the classes; the pictures of the classes are always the same.
        noise: standard deviation of the noise, relative to that of the pictures.
        wrong: share of labels that are drawn at random.

    Returns:
        Images (n, C, H, W) in float32, labels (n,).
    """
    fixed, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed + 1)
    small = torch.randn(10, channels, side // 4, side // 4, generator=fixed)
    classes = F.interpolate(small, size=(side, side), mode="bilinear")
    y = torch.randint(0, 10, (count,), generator=own)
    x = classes[y] + noise * torch.randn(count, channels, side, side, generator=own)
    other = torch.randint(0, 10, (count,), generator=own)
    return x, torch.where(torch.rand(count, generator=own) < wrong, other, y)


def words(count: int, seed: int) -> Split:
    """Made-up sequences of words; the class of each place is the word, shifted by a fixed permutation."""
    own = torch.Generator().manual_seed(seed)
    x = torch.randint(0, sequences.WORDS, (count, sequences.LENGTH), generator=own)
    return x, (5 * x + 3) % sequences.WORDS


def data(net: str, count: int, seed: int = 0) -> Split:
    """Made-up examples for a network."""
    if net == "transformer":
        return words(count, seed)
    return pictures(count, *((3, 32) if net == "resnet18" else (1, 28)), seed)


def task(net: str, tiny: bool, train: Split, valid: Split, seed: int = 0, **options: Any) -> rd.Task:
    """A task that tunes the dropout rates of a network and a weight decay.

    Args:
        net: one of `NETS`.
        tiny: whether the network is small.
        train: training examples.
        valid: validation examples.
        seed: seed of the initial weights.
        options: further arguments of `rd.Task`.
    """
    torch.manual_seed(seed)
    model = network(net, tiny)
    names = dict.fromkeys(m.names[0] for m in model.modules() if isinstance(m, rd.Dropout))
    rates: dict[str, rd.Hyperparameter] = {name: rd.Bounded(RATE, low=0.0, high=0.95) for name in names}
    space = rd.HyperSpace(**rates, decay=rd.Positive(1e-4))
    given = {"loss": F.cross_entropy, "penalty": rd.L2("decay"), **options}
    return rd.Task(space=space, model=model, train=train, valid=valid, **given)


def parts(tuner: rd.SelfTuner) -> dict[str, Tensor]:
    """All tensors that a run trains, by name: w₀ and buffers, Θ, λ and σ."""
    found = {f"w0 {name}": t for name, t in tuner.model.state_dict().items()}
    if tuner.response is not None:
        found |= {f"response {name}": t for name, t in tuner.response.state_dict().items()}
    found |= {"lambda": tuner.space.lam.detach(), "sigma": tuner.space.scale.detach()}
    return {name: t.detach().clone() for name, t in found.items()}
