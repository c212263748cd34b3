"""The hyperparameters in force during each epoch: the schedule that a self-tuned run has found.

A report has the values at the end of an epoch. Training with them from the start of an epoch would be early by one
epoch. So a schedule has, for each epoch, s(λ̄) with the mean λ̄ of λ over the train steps of the epoch. For a decay this
is the geometric mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ray_deltastn.space import HyperSpace

if TYPE_CHECKING:
    import pandas as pd

#: Share of the epochs, from the end, over which `final_values` takes the mean.
LAST = 0.2


class InForce:
    """Counts λ over train steps, without waiting for the device.

    Args:
        space: the hyperparameters.
    """

    def __init__(self, space: HyperSpace) -> None:
        self.space = space
        self._sum = torch.zeros_like(space.lam, dtype=torch.float64)
        self._since = 0
        self._epochs: list[Tensor] = []

    def note(self, step: int) -> None:
        """Count the present λ for all train steps since the last call.

        Args:
            step: train steps so far.
        """
        if step > self._since:
            self._sum += self.space.lam.detach() * (step - self._since)
        self._since = step

    def end_epoch(self, steps: int, constant: Tensor | None = None) -> None:
        """Add the row of an epoch.

        Args:
            steps: train steps of the epoch.
            constant: values (h,) of a run that tunes nothing.
        """
        values = self.space.values(self._sum / steps).detach() if constant is None else constant.double()
        self._epochs.append(values.clone())
        self._sum.zero_()

    def latest(self) -> dict[str, float]:
        """The row of the last completed epoch, by name.

        Raises:
            IndexError: if no epoch is complete.
        """
        return dict(zip(self.space.names, self._epochs[-1].tolist(), strict=True))

    def table(self) -> pd.DataFrame:
        """One row per completed epoch, which counts from 1; one column per hyperparameter."""
        import pandas as pd  # it takes long, and training does not need it

        rows = torch.stack(self._epochs).tolist() if self._epochs else []
        index = pd.RangeIndex(1, len(rows) + 1, name="epoch")
        table: pd.DataFrame = pd.DataFrame(rows, columns=list(self.space.names), index=index, dtype=float)
        return table

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and the sum of the epoch that is not complete."""
        rows = torch.stack(self._epochs) if self._epochs else torch.zeros(0, len(self.space), dtype=torch.float64)
        return {"rows": rows, "sum": self._sum.clone(), "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        device = self._sum.device
        self._epochs = list(state["rows"].to(device).unbind())
        self._sum = state["sum"].to(device).clone()
        self._since = state["since"]


def up_to(schedule: pd.DataFrame, epoch: int) -> pd.DataFrame:
    """The rows of a schedule up to an epoch, at least the first row: a report may come in the middle of epoch 1."""
    table: pd.DataFrame = schedule.head(max(1, epoch))
    return table


def until_best(schedule: pd.DataFrame, report: Mapping[str, Any], monitor: str) -> pd.DataFrame:
    """A schedule up to the epoch of the best report.

    Args:
        schedule: one row per epoch, which counts from 1.
        report: the best report, empty if there is none.
        monitor: the number by which it is the best.

    Raises:
        ValueError: if there is no best report.
    """
    if not report:
        raise ValueError(f"`best=True` needs a report with a finite `{monitor}`, got none")
    return up_to(schedule, int(report["epoch"]))


def stretched(schedule: pd.DataFrame, epochs: int) -> pd.DataFrame:
    """A schedule for another number of epochs: epoch n has the row at the same share of the run.

    Args:
        schedule: one row per epoch, one column per hyperparameter.
        epochs: number of epochs, at least one.
    """
    rows = [int((n + 0.5) * len(schedule) / epochs) for n in range(epochs)]
    table: pd.DataFrame = schedule.iloc[rows].set_axis(range(1, epochs + 1)).rename_axis("epoch")
    return table


def final_values(schedule: pd.DataFrame, space: HyperSpace) -> dict[str, float]:
    """Means of a schedule over its last fifth, at least one epoch; for `Positive` the geometric mean.

    Args:
        schedule: one row per epoch, one column per hyperparameter.
        space: the hyperparameters.

    Raises:
        ValueError: if the schedule has no epoch.
    """
    if not len(schedule):
        raise ValueError("`schedule` must have at least one epoch, got none")
    last = schedule.tail(max(1, math.ceil(LAST * len(schedule))))
    found = {}
    for name in last:
        p = space.hyperparameters[name]
        values = torch.tensor(last[name].to_numpy(), dtype=torch.float64)
        mean = values.log().mean().exp() if p.log_search and bool((values > 0).all()) else values.mean()
        found[name] = float(mean.round() if p.integer else mean)
    return found
