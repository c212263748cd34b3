"""An end for the whole experiment: training epochs of all trials together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune import Stopper


class EpochBudget(Stopper):
    """Ends every trial, and begins no other, once all of them together have trained a number of epochs.

    What runs at that moment ends with the report it is working on, so the budget may be passed by as many epochs as
    there are trials at a time.

    Args:
        epochs: the budget.
        spent: epochs by trial before this run of the experiment.
    """

    def __init__(self, epochs: int, spent: Mapping[str, int] | None = None) -> None:
        self.epochs = epochs
        self.spent = dict(spent or {})

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Count a report; a trial that was restored counts each epoch once. Never ends one trial alone."""
        self.spent[trial_id] = int(result["epoch"])
        return False

    def stop_all(self) -> bool:
        """Whether the budget is spent."""
        return sum(self.spent.values()) >= self.epochs
