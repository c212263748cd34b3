"""A network of a library, and what its task needs besides the network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A network and its task.

    Args:
        name: name of the network.
        library: the package that has it.
        build: makes the network with random weights, small enough for a test.
        data: makes a batch (x, y) of some examples, or one dictionary if `batch` is given.
        loss: `loss(output, target)`.
        wrap: a module that adapts the network to the task, if it needs one.
        batch: see `Task`.
        per: whether each example has its own hyperparameters.
        attributes: see `rd.tune_dropouts`.
    """

    name: str
    library: str
    build: Callable[[], nn.Module]
    data: Callable[[int], Any]
    loss: Callable[[Any, Any], Tensor] = nn.functional.cross_entropy
    wrap: Callable[[nn.Module], nn.Module] | None = None
    batch: str | None = None
    per: Literal["example", "batch"] = "example"
    attributes: Sequence[str] = field(default=())

    @property
    def lines(self) -> int:
        """Lines that the task needs besides a network, data, hyperparameters and a loss of PyTorch."""
        own = [part for part in (self.loss, self.wrap) if part is not None and part.__module__.startswith("benchmarks")]
        return sum(map(_lines, own)) + (self.batch is not None) + bool(self.attributes)


def _lines(code: Any) -> int:
    """Lines of a function or class without its docstring and blank lines."""
    return sum(bool(line.strip()) and '"""' not in line for line in inspect.getsource(code).splitlines())


def images(count: int, size: int = 32, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Random images (B, 3, size, size) and classes (B,)."""
    return torch.randn(count, 3, size, size), torch.randint(0, classes, (count,))
