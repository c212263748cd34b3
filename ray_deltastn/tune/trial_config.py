"""Keys and types of a trial's config, for editors and type checkers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.search.sample import Domain
from typing_extensions import Required, TypedDict

from ray_deltastn.methods import Method, MethodName
from ray_deltastn.task import Task
from ray_deltastn.training.options import OptionsOf

#: Return type of `tune.grid_search`.
GridSearch = dict[str, Any]


class Resources(TypedDict, total=False):
    """What one trial requests from Ray: its number of workers, and the CPUs and (fractional) GPUs of each."""

    workers: int
    cpu: float
    gpu: float


class Start(TypedDict):
    """Initial values and perturbation scales of a trial, by hyperparameter; see `WarmStart`."""

    values: Mapping[str, float]
    scale: Mapping[str, float]


class TrialConfig(OptionsOf[Domain | GridSearch], total=False):
    """Config of a `DeltaSTNTrainable`: the task, and any option as a value or as a Tune domain.

    Tune asks for a plain `dict`, so give it `param_space={**config}`. Keys that only the task reads are not part of
    this type; add them there, as in `{**config, "width": 100}`.

    Examples:
        >>> config: TrialConfig = {"task": "digits-mlp", "lr": tune.loguniform(1e-2, 1e-1), "epochs": 20}
        >>> config["epochs"]
        20
    """

    task: Required[Callable[[Any], Task] | str]
    method: MethodName | Method | Domain | GridSearch
    resources: Resources
    warm_start: Start | None
