"""The size of a trial's config when it is pickled, as Tune does for its state and for every trial."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ray import cloudpickle

from ray_deltastn.training.warned import RunWarning

#: Bytes above which a value of a config is warned of.
LIMIT = 10 * 10**6


def warn_of_large(config: Mapping[str, Any]) -> None:
    """Warn of values that pickle to more than 10 MB, such as a function whose closure holds a data set.

    Args:
        config: config of a trial.
    """
    for key, value in config.items():
        size = pickled_size(value)
        if size > LIMIT:
            warnings.warn(
                f"`{key}` must pickle to at most {LIMIT / 1e6:.0f} MB, because Tune copies it into its state and to "
                f"every trial, got {size / 1e6:.1f} MB; give the data with "
                "`tune.with_parameters(DeltaSTNTrainable, data=data)` to `build(config, data)`",
                RunWarning,
                stacklevel=3,
            )


def pickled_size(value: Any) -> int:
    """Bytes of a value when it is pickled as Ray does; 0 if it cannot be pickled, which Ray itself reports."""
    counter = _Counter()
    try:
        cloudpickle.dump(value, counter)
    except Exception:  # a value's own `__reduce__` can raise anything
        return 0
    return counter.size


class _Counter:
    """A file that counts what is written and keeps nothing."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        """Count the bytes of one write."""
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes
