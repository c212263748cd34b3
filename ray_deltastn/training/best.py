"""The best network of a run so far, kept with the report that it had."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor


class Best:
    """The network of the best report, on the CPU.

    Args:
        monitor: number of a report that decides.
        mode: `min` if smaller is better, `max` if larger is better; None means `min`.

    Attributes:
        report: that report; empty before the first finite number.
        weights: its network, as a `state_dict` of the model's own class.
    """

    def __init__(self, monitor: str, mode: str | None) -> None:
        self.monitor, self.mode = monitor, mode or "min"
        self._sign = 1.0 if self.mode == "min" else -1.0
        self.report: dict[str, Any] = {}
        self.weights: dict[str, Tensor] = {}

    @property
    def value(self) -> float:
        """The number, with the sign that makes smaller better; infinite before the first."""
        return self._sign * float(self.report[self.monitor]) if self.report else math.inf

    def check(self, known: Collection[str]) -> None:
        """Check the name of the number.

        Args:
            known: numbers of a report.

        Raises:
            ValueError: if it is not one of them.
        """
        if self.monitor not in known:
            raise ValueError(f"`monitor` must be one of {', '.join(known)}, got {self.monitor!r}")

    def see(self, report: Mapping[str, Any], export: Callable[[], dict[str, Tensor]]) -> None:
        """Take a network if its report is better than all before.

        Args:
            report: the report.
            export: function that copies the network.
        """
        number = report[self.monitor]
        if math.isfinite(number) and self._sign * number < self.value:
            self.report = dict(report)
            self.weights = {name: value.cpu() for name, value in export().items()}

    def state_dict(self) -> dict[str, Any]:
        """The report and the network."""
        return {"monitor": self.monitor, "mode": self.mode, "report": dict(self.report), "weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; one that was kept by another number starts anew."""
        same = (state["monitor"], state["mode"]) == (self.monitor, self.mode)
        self.report, self.weights = (dict(state["report"]), dict(state["weights"])) if same else ({}, {})
