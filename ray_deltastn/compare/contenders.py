"""The methods that a comparison can have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """A method of the comparison: the method of its trials, its searcher (None for a single run) and its scheduler."""

    method: str = "fixed"
    searcher: str | None = None
    scheduler: str = "fifo"

    @property
    def tuned(self) -> bool:
        """Whether the trials tune their hyperparameters."""
        return self.method != "fixed"


#: The methods that can be compared, in the order of the tables.
CONTENDERS = {
    "fixed": Contender(),
    "grid": Contender(searcher="grid"),
    "random": Contender(searcher="random"),
    "bo": Contender(searcher="bo"),
    "asha": Contender(searcher="random", scheduler="asha"),
    "pbt": Contender(searcher="random", scheduler="pbt"),
    "stn": Contender("stn"),
    "centered-stn": Contender("centered-stn"),
    "delta-stn": Contender("delta-stn"),
    "hybrid": Contender("delta-stn", searcher="bo"),
}
