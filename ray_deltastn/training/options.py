"""Names and types of all options, for editors and type checkers; `Settings` says what they mean and checks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import torch
from typing_extensions import Never, TypedDict

from ray_deltastn.domains import DomainsName
from ray_deltastn.methods import HyperPass
from ray_deltastn.training.schedule import ScheduleName

PresetName = Literal["recommended", "paper"]
OptimizerName = Literal["sgd", "adam", "adamw"]
ResponseOptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]
HyperOptimizerName = Literal["rmsprop", "adam"]
SolverName = Literal["cg", "neumann"]
PrecisionName = Literal["fp32", "tf32", "bf16"]
GraphName = Literal["auto", "on", "off"]
#: A constant, or one value per epoch.
Constants = Mapping[str, float | Sequence[float]]

#: Names that other libraries have for an option.
OTHER_NAMES = {"learning_rate": "lr", "num_epochs": "epochs", "max_epochs": "epochs", "n_epochs": "epochs"}

#: Type that an option may have in addition to its own type.
Other = TypeVar("Other")


class OptionsOf(TypedDict, Generic[Other], total=False):
    """Options of a run, each with its own type or `Other`, such as one of Tune's domains."""

    preset: PresetName | Other
    domains: DomainsName | Other | None
    epochs: int | Other
    batch_size: int | Other
    valid_batch_size: int | Other | None
    lr: float | Other
    momentum: float | Other
    optimizer: OptimizerName | Other
    response_lr: float | Other | None
    response_optimizer: ResponseOptimizerName | Other | None
    weight_decay: float | Other
    schedule: ScheduleName | Mapping[str, Any] | Other | None
    min_lr: float | Other | None
    hyper_lr: float | Literal["auto"] | Other | None
    hyper_decay: float | Other | None
    scale_lr: float | Other | None
    hyper_optimizer: HyperOptimizerName | Other
    entropy_weight: float | Other
    train_interval: int | Other
    valid_interval: int | Other
    warmup: float | Literal["auto"] | Other | None
    warmup_steps: int | Other | None
    response_fraction: float | Other | None
    antithetic: bool | Other | None
    perturbations: int | Other | None
    sub_batches: int | Literal["auto"] | Other | None
    per_scale: bool | Other | None
    hyper_pass: HyperPass | Other | None
    tune_scale: bool | Other
    clip_grad: float | Other | None
    response_clip: float | Other | None
    hyper_clip: float | Other | None
    implicit_solver: SolverName | Other
    implicit_steps: int | Other
    implicit_damping: float | Other
    precision: PrecisionName | Other
    channels_last: bool | Other
    graph: GraphName | bool | Other
    patience: int | Other | None
    monitor: str | Other
    monitor_mode: Literal["min", "max"] | Other | None
    steps_per_report: int | Other | None
    hyperparameters: Constants | Other
    seed: int | Other
    device: str | torch.device | Other


#: Options of `SelfTuner`, besides its method.
Options = OptionsOf[Never]
