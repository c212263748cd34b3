"""What a trial requests from Ray: its number of workers, and the CPUs and GPUs of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_KNOWN = ("workers", "cpu", "gpu")


def workers_of(config: Mapping[str, Any]) -> int:
    """Number of workers of a trial, from `config["resources"]`.

    Raises:
        ValueError: if it is not a whole number of at least one, or if several workers would share a GPU.
    """
    resources = _resources(config)
    workers = resources.get("workers", 1)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"`resources.workers` must be a whole number of at least 1, got {workers!r}")
    if workers > 1:
        check_whole_gpu("resources.gpu", bundle_of(config).get("GPU", 0.0))
    return workers


def check_whole_gpu(key: str, gpu: float) -> None:
    """Raise ValueError if each of several workers has a fraction of a GPU, because NCCL needs a GPU for each."""
    if 0 < gpu < 1:
        raise ValueError(f"`{key}` must be 0 or at least 1 for several workers, got {gpu:g}")


def bundle_of(config: Mapping[str, Any]) -> dict[str, float]:
    """CPUs and (fractional) GPUs of one worker, from `config["resources"]`, by Ray's names.

    Raises:
        ValueError: if a resource is unknown, or an amount is negative or not a number.
    """
    resources = _resources(config)
    cpu, gpu = resources.get("cpu", 1), resources.get("gpu", 0)
    for name, amount in (("cpu", cpu), ("gpu", gpu)):
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
            raise ValueError(f"`resources.{name} >= 0` must hold, got {amount!r}")
    return {"CPU": float(cpu), **({"GPU": float(gpu)} if gpu else {})}


def _resources(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get("resources") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"`resources` must be a mapping with 'cpu', 'gpu' and 'workers', got {given!r}")
    resources = dict(given)
    unknown = set(resources) - set(_KNOWN)
    if unknown:
        raise ValueError(f"`resources` must hold 'cpu', 'gpu' and 'workers' only, got {sorted(unknown)[0]!r}")
    return resources
