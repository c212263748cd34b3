"""The reports of a run so far, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import pandas as pd


class History:
    """The numbers of all reports of a run. Texts are left out."""

    def __init__(self) -> None:
        self._reports: list[dict[str, float]] = []

    def add(self, report: Mapping[str, Any]) -> None:
        """Keep a report."""
        self._reports.append({name: float(v) for name, v in report.items() if isinstance(v, bool | int | float)})

    def table(self) -> pd.DataFrame:
        """One row per report, one column per number."""
        import pandas as pd  # it takes long, and training does not need it

        table: pd.DataFrame = pd.DataFrame(self._reports)
        return table

    def state_dict(self) -> dict[str, Any]:
        """The names of the columns, and their numbers in one tensor (reports, columns); NaN where a report has none."""
        names = list(dict.fromkeys(name for report in self._reports for name in report))
        rows = [[report.get(name, torch.nan) for name in names] for report in self._reports]
        return {"names": names, "rows": torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(names))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self._reports = [dict(zip(state["names"], row, strict=True)) for row in state["rows"].tolist()]
