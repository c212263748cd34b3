"""The pieces of which a part consists: each is run by itself, within its time, and leaves one row."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class NoTime(Exception):  # noqa: N818 - it is no error
    """A piece would take longer than its part has left. It leaves no row."""


@dataclass(frozen=True)
class Place:
    """Where pieces run.

    Attributes:
        device: the device.
        tiny: whether networks and data are so small that all pieces are done in seconds on a CPU, as a test.
        until: clock time (`time.time`) at which the part ends.
        rows: rows of the part so far, by name.
    """

    device: torch.device
    tiny: bool
    until: float
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds until the part ends."""
        return self.until - time.time()

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has finished its queued work."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


@dataclass
class Findings:
    """The figures of a piece, and the rules that they break.

    Attributes:
        figures: name → number, or any other plain value.
        limits: name → the largest value that is allowed.
        broken: broken rules, as text.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def note(self, **figures: Any) -> None:
        """Keep figures that have no limit."""
        self.figures |= figures

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Keep a figure that must not be above a limit, and must be a number."""
        self.figures[name], self.limits[name] = value, limit
        if math.isnan(value) or value > limit:
            self.broken.append(f"`{name} <= {limit:g}` must hold, got {value:.3g}")

    def must(self, name: str, holds: bool) -> None:
        """Keep a figure that must be true."""
        self.figures[name] = holds
        if not holds:
            self.broken.append(f"`{name}` must hold, got no")


@dataclass(frozen=True)
class Item:
    """A piece of a part.

    Attributes:
        name: its name in the part.
        run: function that does the work.
        seconds: seconds that it takes on a GPU; it does not begin if fewer are left.
        limit: seconds after which a run that has not ended counts as failed.
    """

    name: str
    run: Callable[[Place, Findings], None]
    seconds: float = 10.0
    limit: float = 90.0


def difference(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """‖found − expected‖ / max(‖expected‖, least), computed in float64 on the CPU."""
    one, other = (t.detach().to("cpu", torch.float64) for t in (found, expected))
    error, size = float((one - other).norm()), max(float(other.norm()), least)
    return error / size if size else (0.0 if error == 0.0 else math.inf)


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor], share: float = 1e-3) -> float:
    """The largest difference of tensors with the same names.

    Args:
        found: tensors by name.
        expected: what they should be.
        share: a tensor counts with at least this share of the largest norm, because some are zero but for rounding.
    """
    least = share * max(float(t.detach().double().norm()) for t in expected.values())
    return max(difference(found[name], value, least) for name, value in expected.items())
