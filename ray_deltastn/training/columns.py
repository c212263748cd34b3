"""Names of the columns of a report that come in groups: `hyperparameters/dropout`, `scale/dropout`, `seconds/train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class Columns:
    """A group of columns, whose names are `<group>/<name>`.

    Args:
        group: what the names begin with.
        names: the names that the group has; None for any.

    Raises:
        ValueError: from a call with a name that the group does not have.

    Examples:
        >>> VALUES("dropout")
        'hyperparameters/dropout'
        >>> VALUES.of({"hyperparameters/dropout": 0.5, "epoch": 1})
        {'dropout': 0.5}
    """

    def __init__(self, group: str, names: tuple[str, ...] | None = None) -> None:
        self.prefix = f"{group}/"
        self.names = names

    def __call__(self, name: str) -> str:
        """The column of a name."""
        if self.names is not None and name not in self.names:
            raise ValueError(f"`{self.prefix}` must have one of the names {', '.join(self.names)}, got {name!r}")
        return self.prefix + name

    def __contains__(self, column: str) -> bool:
        """Whether a column is one of this group."""
        return column.startswith(self.prefix)

    def of(self, report: Mapping[str, T]) -> dict[str, T]:
        """Values of this group in a report, by name without the group."""
        return {column[len(self.prefix) :]: value for column, value in report.items() if column in self}

    def named(self, values: Mapping[str, T]) -> dict[str, T]:
        """Values by name as columns."""
        return {self(name): value for name, value in values.items()}


#: Hyperparameters in their own domain, and their perturbation scales σ, by hyperparameter.
VALUES, SCALES = Columns("hyperparameters"), Columns("scale")
#: Seconds of each activity, and warning metrics, which are zero if nothing is wrong.
SECONDS = Columns("seconds", ("train", "hyper", "evaluate", "total", "checkpoint", "between"))
WARNINGS = Columns(
    "warning", ("saturated", "small_scale", "large_steps", "large_response", "short_run", "damaged_checkpoints")
)
#: By hyperparameter: how consistent the hyper steps are, in [0, 1], and the share of them with λ on a limit of its box.
SIGNALS, AT_BOUND = Columns("signal"), Columns("at_bound")
#: The share of the trainable weights that respond, and the largest part of the others, as text; 0 and empty without Θ.
COVERAGE = Columns("coverage", ("share", "largest_gap"))
#: The groups of a report whose numbers change from report to report.
GROUPS = (VALUES, SCALES, SECONDS, WARNINGS, SIGNALS, AT_BOUND)
