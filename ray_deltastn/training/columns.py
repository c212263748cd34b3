"""Names of the columns of a report that come in groups: `hyperparameters/dropout`, `scale/dropout`, `seconds/train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class Columns:
    """A group of columns, whose names are `<group>/<name>`.

    Args:
        group: what the names begin with.

    Examples:
        >>> VALUES("dropout")
        'hyperparameters/dropout'
        >>> VALUES.of({"hyperparameters/dropout": 0.5, "epoch": 1})
        {'dropout': 0.5}
    """

    def __init__(self, group: str) -> None:
        self.prefix = f"{group}/"

    def __call__(self, name: str) -> str:
        """The column of a name."""
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
SECONDS, WARNINGS = Columns("seconds"), Columns("warning")
#: All groups of a report.
GROUPS = (VALUES, SCALES, SECONDS, WARNINGS)
