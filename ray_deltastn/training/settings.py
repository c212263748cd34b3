"""How a run trains: every option of `SelfTuner` and of a trial, with the paper's defaults, checked once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_args, get_origin

import torch
from pydantic import BaseModel, ConfigDict, Field, SkipValidation, ValidationError, field_validator, model_validator

from ray_deltastn.methods import Method, MethodName, get_method
from ray_deltastn.training.options import (
    Constants,
    GraphName,
    HyperOptimizerName,
    OptimizerName,
    PrecisionName,
    PresetName,
    SolverName,
)
from ray_deltastn.training.schedule import ScheduleName, check_schedule


class Preset(TypedDict):
    """Values of the options that are not given."""

    response_fraction: float
    antithetic: bool
    hyper_lr: float | Literal["auto"]
    warmup: float | Literal["auto"]


PRESETS: dict[PresetName, Preset] = {
    "paper": {"response_fraction": 1.0, "antithetic": False, "hyper_lr": 0.01, "warmup": 5.0},
    "fast": {"response_fraction": 0.25, "antithetic": True, "hyper_lr": "auto", "warmup": "auto"},
}
#: Options of a preset for methods that do not train Θ apart from w₀.
_WHOLE = {"response_fraction": 1.0, "antithetic": False}
#: Smallest and largest learning rate of λ that `auto` chooses. In between, hyper steps × learning rate = AUTO_WAY.
AUTO_LEAST, AUTO_MOST, AUTO_WAY = 0.01, 0.1, 8.0
#: Smallest number of train steps in a warm-up that `auto` chooses: five epochs of the paper's FashionMNIST.
AUTO_WARMUP = 2000

_Count = Annotated[int, Field(ge=1)]
_Above = Annotated[float, Field(gt=0.0)]
_Least = Annotated[float, Field(ge=0.0)]


class Settings(BaseModel):
    """Options of a run.

    Attributes:
        method: `delta-stn`, `centered-stn`, `stn`, `ift`, `unrolled` or `fixed` (or your own `Method`).
        preset: decides the options that are not given. `paper` is Algorithms 1 and 2 as printed. `fast` takes 40 %
            fewer FLOPs, and its warm-up and learning rate of λ fit the length of the run.
        epochs: passes over the training data.
        batch_size: examples in a training minibatch.
        valid_batch_size: examples in a validation minibatch of a hyper step; by default `batch_size`.
        lr: learning rate α₁ of w₀ and Θ.
        momentum: momentum of SGD; the first beta of Adam and AdamW.
        optimizer: `sgd`, `adam` or `adamw`, for w₀ and Θ.
        response_lr: learning rate of Θ; by default `lr`, as in the paper. It follows the schedule in proportion.
        response_optimizer: `sgd`, `adam` or `adamw`, for Θ; by default `optimizer`, as in the paper.
        weight_decay: the optimiser's constant weight decay of w₀; the default is zero for AdamW too. To tune a weight
            decay, use the penalty `L2` instead.
        schedule: learning-rate schedule of w₀ and Θ, stepped once per epoch: `step`, `multistep`, `cosine` or
            `plateau`, or a mapping with `name` and the arguments of PyTorch's scheduler.
        hyper_lr: learning rate α₂ of λ; by default the preset's: 0.01 for `paper`, `auto` for `fast`. `auto` is not in
            the paper: it is 8 / (number of hyper steps planned), at least 0.01 and at most 0.1, so that a short run
            can move λ as far as a long one.
        scale_lr: learning rate α₃ of σ; by default `hyper_lr`.
        hyper_optimizer: `rmsprop` or `adam`, for λ and σ.
        entropy_weight: τ, weight of the perturbation's entropy.
        train_interval: T_train, train steps in a cycle.
        valid_interval: T_valid, hyper steps in a cycle.
        warmup: epochs without hyper steps at the start; by default the preset's: 5 for `paper`, `auto` for `fast`.
            `auto` is not in the paper: it is 5 epochs or 2,000 train steps, whichever is more, but at most half the
            run. While a network underfits, the hypergradient asks for less regularisation, until λ is so low that its
            gradient vanishes.
        warmup_steps: the same in train steps; overrides `warmup`.
        response_fraction: share of each minibatch that trains Θ, in (0, 1]; by default the preset's: 1 for `paper`, ¼
            for `fast`. Methods that train Θ along with w₀ use the whole minibatch. The share is the first examples of
            the minibatch, so a `DataLoader` should shuffle.
        antithetic: train Θ on half of the examples of that share, each under ε and under −ε. On some tasks this gives
            less noise for the same cost. By default the preset's: no for `paper`, yes for `fast`. It has no effect on
            shares of fewer than four examples, and methods that train Θ along with w₀ do not support it.
        tune_scale: tune σ; otherwise it stays at its initial value.
        clip_grad: largest gradient norm, of w₀ and of Θ each; None for no clipping.
        implicit_solver: for `ift`: `cg`, or `neumann` with the learning rate as its step.
        implicit_steps: for `ift`: products with the Hessian in a hyper step.
        implicit_damping: for `ift`: added to the diagonal of the Hessian.
        precision: `fp32`; `tf32`, where float32 products and convolutions round their factors to 10 bits if the device
            can; or `bf16`, where the passes of the network run under autocast, and random numbers, losses, penalties
            and parameters stay in float32.
        channels_last: keep images and the weights of 2-d convolutions in channels-last memory order. This may be
            faster; `benchmarks.speed --channels-last` measures it. The network must not call `view` on its feature
            maps; `flatten` and `reshape` work.
        graph: `off`, `on` or `auto`. With `on`, each step is captured once and replayed: on a GPU as a CUDA graph, on a
            CPU as a `torch.fx` graph, which takes about half the time for a tiny network. `auto` is `on` for a
            GPU if the step can be captured, and `off` for a CPU. On a CPU the first replay is compared with the step
            itself, and refused unless all numbers are the same to the bit (layer normalisation under `delta-stn` is
            refused, for example, and Adam is not supported). Side effects of a step (counters, prints, hooks of
            optimisers, a changed loss weight) happen at the capture only. A step that reads a number from a tensor, or
            draws from Python's or NumPy's random numbers, is not captured.
        patience: stop after this many reports without a better validation loss; None for never.
        steps_per_report: train steps between reports; by default an epoch.
        hyperparameters: for `fixed`: name → value, or one value per epoch.
        seed: seed of the data order, perturbations, dropout and the initial response.
        device: `auto`, `cpu`, `cuda`, …

    Raises:
        ValueError: if an option breaks its rule; the message names the rule and the value got.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )

    method: MethodName | Method = "delta-stn"
    preset: PresetName = "paper"
    epochs: _Count = 100
    batch_size: _Count = 128
    valid_batch_size: _Count | None = None
    lr: _Above = 0.01
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    optimizer: OptimizerName = "sgd"
    response_lr: _Above | None = None
    response_optimizer: OptimizerName | None = None
    weight_decay: _Least = 0.0
    schedule: SkipValidation[ScheduleName | Mapping[str, Any] | None] = None
    hyper_lr: _Above | Literal["auto"] = 0.01
    scale_lr: _Above | None = None
    hyper_optimizer: HyperOptimizerName = "rmsprop"
    entropy_weight: _Least = 1e-3
    train_interval: _Count = 5
    valid_interval: _Count = 1
    warmup: _Least | Literal["auto"] = 5.0
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    response_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    antithetic: bool = False
    tune_scale: bool = True
    clip_grad: _Above | None = None
    implicit_solver: SolverName = "cg"
    implicit_steps: _Count = 20
    implicit_damping: _Least = 0.0
    precision: PrecisionName = "fp32"
    channels_last: bool = False
    graph: GraphName = "off"
    patience: _Count | None = None
    steps_per_report: _Count | None = None
    hyperparameters: SkipValidation[Constants] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"

    if not TYPE_CHECKING:  # type checkers read the fields

        def __init__(self, **given: Any) -> None:
            self.require_known(given)
            try:
                super().__init__(**given)
            except ValidationError as error:
                raise ValueError(_first_rule(error, given)) from None

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Options that are not given, or None, become the preset's."""
        preset = given.get("preset", "paper")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}")
        method = get_method(given.get("method", "delta-stn"))
        chosen = {**PRESETS[preset], **({} if method.trains_apart else _WHOLE)}
        return {**given, **{name: value for name, value in chosen.items() if given.get(name) is None}}

    @field_validator("method", mode="plain")
    @classmethod
    def _known_method(cls, method: Any) -> Any:
        get_method(method)
        return method

    @field_validator("graph", mode="before")
    @classmethod
    def _as_yaml_reads_it(cls, graph: Any) -> Any:
        return {True: "on", False: "off"}[graph] if isinstance(graph, bool) else graph

    @field_validator("device", mode="before")
    @classmethod
    def _as_text(cls, device: Any) -> str:
        if isinstance(device, torch.device) or (isinstance(device, int) and not isinstance(device, bool)):
            return str(torch.device(device))
        if not isinstance(device, str):
            raise ValueError(f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:0', …, got {device!r}")
        return device

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        """Rules for several options."""
        method = get_method(self.method)
        for name, whole in _WHOLE.items():
            if getattr(self, name) != whole and method.responds and not method.trains_apart:
                got = f"{getattr(self, name)} with '{method.name}'"
                raise ValueError(f"`{name}` needs a method that trains Θ apart from w₀, got {got}")
        if method.hypergradient == "unrolled" and self.optimizer != "sgd":
            raise ValueError(f"`optimizer` must be sgd for '{method.name}', got {self.optimizer!r}")
        if method.hypergradient == "implicit" and self.optimizer == "adamw" and self.weight_decay:
            raise ValueError(
                f"`weight_decay` of adamw is not part of the loss that '{method.name}' differentiates, got "
                f"{self.weight_decay}; use sgd or adam, or the penalty `L2`"
            )
        if not isinstance(self.hyperparameters, Mapping):
            raise ValueError(f"`hyperparameters` must be a mapping from names, got {self.hyperparameters!r}")
        if self.hyperparameters and method.tunes:
            raise ValueError(
                f"`hyperparameters` are constants for method 'fixed', got them with '{method.name}'; set initial "
                "values in the HyperSpace"
            )
        try:
            self.torch_device()
        except (RuntimeError, TypeError):
            raise ValueError(f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:0', …, got {self.device!r}") from None
        check_schedule(self.schedule, self.epochs, self.lr)
        return self

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all options."""
        return tuple(cls.model_fields)

    @classmethod
    def require_known(cls, given: Iterable[str]) -> None:
        """Raise ValueError, with the option that was probably meant, for the first name that is not an option."""
        unknown = [name for name in given if name not in cls.names()]
        if unknown:
            near = cls.nearest(unknown[0])
            hint = f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"options must be those of `Settings`, got {unknown[0]!r}{hint}")

    @classmethod
    def nearest(cls, name: str) -> str | None:
        """The option that a misspelt name probably means."""
        near = difflib.get_close_matches(name, cls.names(), n=1, cutoff=0.8)
        return near[0] if near else None

    def torch_device(self) -> torch.device:
        """The training device; `auto` is CUDA if there is a CUDA device, else the CPU."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def captures(self, device: torch.device) -> bool:
        """Whether the steps of a run on this device are to be captured.

        Raises:
            ValueError: if they must be and cannot.
        """
        method = get_method(self.method)
        looks_back = method.hypergradient in ("implicit", "unrolled")
        able = device.type in ("cpu", "cuda")
        if self.graph == "on" and not able:
            raise ValueError(
                f"`graph` must be auto or off unless the device is cpu or cuda, got 'on' for device {device.type}"
            )
        if self.graph == "on" and looks_back:
            raise ValueError(f"`graph` must be auto or off for '{method.name}', whose steps look back, got 'on'")
        used = [
            self.optimizer,
            *([self.response_optimizer] if method.responds else []),
            *([self.hyper_optimizer] if method.tunes else []),
        ]
        adams = [name for name in used if name in ("adam", "adamw")]
        if self.graph == "on" and device.type == "cpu" and adams:
            raise ValueError(
                f"`graph` must be auto or off with {adams[0]} on a CPU, where PyTorch's step reads a number from a "
                "tensor, got 'on'"
            )
        return able and not looks_back and (self.graph == "on" or (self.graph == "auto" and device.type == "cuda"))

    def warmup_train_steps(self, steps_per_epoch: int) -> int:
        """Train steps before the first hyper step, in a run with `steps_per_epoch` train steps in an epoch."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup != "auto":
            return round(self.warmup * steps_per_epoch)
        return min(max(5 * steps_per_epoch, AUTO_WARMUP), self.epochs * steps_per_epoch // 2)

    def hyper_rate(self, hyper_steps: int) -> float:
        """Learning rate of λ: `hyper_lr`, or the value that `auto` chooses for a run of `hyper_steps` hyper steps."""
        if self.hyper_lr != "auto":
            return self.hyper_lr
        return min(max(AUTO_WAY / max(1, hyper_steps), AUTO_LEAST), AUTO_MOST)


def _first_rule(error: ValidationError, given: Mapping[str, Any]) -> str:
    """One line about the first rule that is broken."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    value = given[name]
    parts = list(_parts(Settings.model_fields[name].annotation, Settings.model_fields[name].metadata))
    choices = [choice for kind, _ in parts if get_origin(kind) is Literal for choice in get_args(kind)]
    numbers = [(kind, rules) for kind, rules in parts if kind in (int, float)]
    if not numbers:
        rule = f"one of {', '.join(choices)}" if choices else {bool: "true or false"}.get(parts[0][0], "text")
        return f"`{name}` must be {rule}, got {value!r}"
    if choices and isinstance(value, str):
        return f"`{name}` must be a number or {', '.join(map(repr, choices))}, got {value!r}"
    kind, rules = numbers[0]
    words = " and ".join(f"{name} {sign} {bound:g}" for sign, bound in rules)
    return f"`{words}` must hold{' for a whole number' if kind is int else ''}, got {name}={value!r}"


def _parts(annotation: Any, metadata: Iterable[Any]) -> Iterator[tuple[Any, list[tuple[str, float]]]]:
    """Types in an annotation with the bounds of each, without None."""
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    if get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        yield from _parts(inner, [m for one in own for m in getattr(one, "metadata", [one])])
    elif get_origin(annotation) is Literal or not get_args(annotation):
        bounds = [(sign, getattr(one, name)) for name, sign in signs for one in metadata if hasattr(one, name)]
        if annotation is not type(None):
            yield annotation, bounds
    else:
        for inner in get_args(annotation):
            yield from _parts(inner, metadata)
