"""How a run trains: every option of `SelfTuner` and of a trial, with the paper's defaults, checked once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, SkipValidation, ValidationError, field_validator, model_validator

from ray_deltastn.domains import DomainsName
from ray_deltastn.maps import REACH
from ray_deltastn.methods import HyperPass, Method, MethodName, get_method
from ray_deltastn.training.options import (
    OTHER_NAMES,
    Constants,
    GraphName,
    HyperOptimizerName,
    OptimizerName,
    PrecisionName,
    PresetName,
    ResponseOptimizerName,
    SolverName,
)
from ray_deltastn.training.presets import WHOLE, values_of
from ray_deltastn.training.rules import first_rule
from ray_deltastn.training.schedule import ScheduleName, check_schedule

#: The learning rate of λ that `auto` chooses lets λ cross the clamped line so many times; AUTO_MOST is its limit.
AUTO_CROSSINGS, AUTO_MOST = 3.0, 0.1
#: Default learning rate of Θ with RMSProp, whose moves do not depend on the size of the gradient.
RMSPROP_RATE = 1e-3
#: Number of different learning rates of λ in a run. A captured step is captured again for each.
STAGES = 8
#: With batch normalisation, `sub_batches: auto` makes two parts or more, at most so many, of about so many examples.
AUTO_PARTS, AUTO_PART_SIZE = 8, 16
#: Smallest number of train steps in a warm-up that `auto` chooses: five epochs of the paper's FashionMNIST.
AUTO_WARMUP = 2000

_Count = Annotated[int, Field(ge=1)]
_Above = Annotated[float, Field(gt=0.0)]
_Least = Annotated[float, Field(ge=0.0)]


class Settings(BaseModel):
    """Options of a run.

    Attributes:
        method: `delta-stn`, `centered-stn`, `stn`, `ift`, `unrolled` or `fixed` (or your own `Method`).
        preset: decides the options that are not given. `paper` is Algorithms 1 and 2 as printed. With
            `recommended` rates can leave their bounds, Θ is kept from blowing up, and the learning rate of λ fits the
            length of the run.
        domains: maps from λ to the hyperparameters; by default the preset's. `clamped` (`recommended`): `Bounded` and
            `Integer` use the clamped line, and `Positive` stays in its search range. `open` (`paper`): `Bounded` and
            `Integer` use the sigmoid, and `Positive` has no limits. A `map` of a hyperparameter overrides this.
        epochs: passes over the training data.
        batch_size: examples in a training minibatch; a `DataLoader` or `Segments` decides itself.
        valid_batch_size: examples in a validation minibatch of a hyper step; by default `batch_size`.
        lr: learning rate α₁ of w₀ and Θ.
        momentum: momentum of SGD; the first beta of Adam and AdamW.
        optimizer: `sgd`, `adam` or `adamw`, for w₀ and Θ; PyTorch's spelling (`AdamW`) works too.
        response_lr: learning rate of Θ. With `rmsprop` it is 0.001 by default, whatever `lr` is: about the length of a
            move of each entry of Θ. With the other optimisers it is `lr` × `response_fraction`, because the noise of
            Θ's gradient grows as the number of its examples falls. With the whole minibatch this is `lr`, as in the
            paper. It follows the schedule in proportion.
        response_optimizer: `sgd`, `adam`, `adamw` or `rmsprop`, for Θ; by default the preset's: `rmsprop` for
            `recommended`, and for `paper` and methods that train Θ along with w₀ the same as `optimizer`. `rmsprop`
            learns Θ also where the training loss and its gradients are almost zero. Use it with
            `antithetic: true`, since it divides the noise of a gradient by its size, too. It has the momentum 0.9,
            whatever `momentum` is.
        weight_decay: the optimiser's constant weight decay of w₀; the default is zero for AdamW too. To tune a weight
            decay, use the penalty `L2` instead, which is not AdamW's decay.
        schedule: learning-rate schedule of w₀ and Θ, stepped once per epoch: `step`, `multistep`, `cosine` or
            `plateau`, or a mapping with `name` and the arguments of PyTorch's scheduler.
        min_lr: end the run at the first report with a learning rate of w₀ below this; None for never.
        hyper_lr: learning rate α₂ of λ; by default the preset's: 0.01 for `paper`, `auto` for `recommended`. `auto` is
            not in the paper: with it the hyper steps planned can take λ three times across the clamped line, whose
            length is 4. It is at most 0.1.
        hyper_decay: share of the learning rates of λ and σ that is left at the end of the run; by default the preset's:
            1 for `paper`, 0.1 for `recommended`. They fall in seven equal ratios after the warm-up, so that λ first
            moves far and then settles.
        scale_lr: learning rate α₃ of σ; by default `hyper_lr`.
        hyper_optimizer: `rmsprop` or `adam`, for λ and σ.
        entropy_weight: τ, weight of the perturbation's entropy.
        train_interval: T_train, train steps in a cycle.
        valid_interval: T_valid, hyper steps in a cycle.
        warmup: epochs without hyper steps at the start; by default 5, as in the paper. `auto` is not in the paper: it
            is 5 epochs or 2,000 train steps, whichever is more, but at most half the run. While a network underfits,
            the hypergradient asks for less regularisation. On the sigmoid λ can then become so low that its gradient
            vanishes.
        warmup_steps: the same in train steps; overrides `warmup`.
        response_fraction: share of each minibatch that trains Θ, in (0, 1]; by default 1, as in the paper. With ¼ a run
            takes 40 % fewer FLOPs. The examples of the share are drawn anew in each step. Methods that train Θ along
            with w₀ use the whole minibatch.
        antithetic: train Θ on half of the examples of that share, drawn anew in each step, each under ε and under −ε;
            by default the preset's: yes for `recommended`, no for `paper`. On some tasks this gives less noise for the
            same cost. Hyperparameters with `per="batch"` have the same perturbation in both halves. With `sub_batches`,
            every second part has −ε of the part before instead. Shares of fewer than four examples have no pairs, and
            methods that train Θ along with w₀ do not support them.
        perturbations: number of perturbations under which each example trains Θ; by default 1, as in the paper. The
            cost of training Θ grows in proportion, and the noise of its gradient falls.
        sub_batches: number of parts into which the examples that train Θ are split. The examples of a part share one
            perturbation and the statistics of batch normalisation. By default the preset's: 1 for `paper`, `auto` for
            `recommended`. `auto` is 1 without batch normalisation; with it, 2 to 8 parts of about 16 examples. If
            examples with different perturbations are normalised together, what λ and Θ do to the statistics averages
            out, and Θ is biased.
        per_scale: train Θ as the response to ε/σ instead of ε; by default the preset's: yes for `recommended`, no for
            `paper`. With SGD, Θ then learns as fast for a small σ as for σ = 1; without it, a hundred times more
            slowly for σ = 0.1. RMSProp and Adam move Θ about equally fast for each σ, with it and without. Methods that
            train Θ along with w₀ do not support it.
        hyper_pass: how a hyper step of `delta-stn` predicts under the perturbation ε. `linearized`: with the linearised
            network, as Algorithm 1. `network`: with the network itself at w₀ + Θ(ε + λ − λ₀), as the authors' code.
            `unperturbed`: at ε = 0, which needs `tune_scale: false`. Other methods do not linearise, so that `network`
            changes nothing for them.
        tune_scale: tune σ; otherwise it stays at its initial value.
        clip_grad: largest gradient norm, of w₀ and of Θ each; None for no clipping.
        response_clip: largest gradient norm of Θ, besides `clip_grad`; by default the preset's: 1 for `recommended`,
            none for `paper`. Without a limit Θ can grow for ever while the losses of w₀ show nothing.
        hyper_clip: largest move of λ and of softplus⁻¹(σ) in a hyper step, in units of their learning rates; by
            default the preset's: 2 for `recommended`, none for `paper`. RMSProp's first steps are up to ten learning
            rates long.
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
        monitor: number of a report that tells which network is the best one, see `SelfTuner.export`.
        monitor_mode: `min` if a smaller number is better, `max` if a larger one is; by default `min` for a loss. For
            any other number it must be given.
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
    preset: PresetName = "recommended"
    domains: DomainsName = "clamped"
    epochs: _Count = 100
    batch_size: _Count = 128
    valid_batch_size: _Count | None = None
    lr: _Above = 0.01
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    optimizer: OptimizerName = "sgd"
    response_lr: _Above | None = None
    response_optimizer: ResponseOptimizerName | None = None
    weight_decay: _Least = 0.0
    schedule: SkipValidation[ScheduleName | Mapping[str, Any] | None] = None
    min_lr: _Above | None = None
    hyper_lr: _Above | Literal["auto"] = "auto"
    hyper_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    scale_lr: _Above | None = None
    hyper_optimizer: HyperOptimizerName = "rmsprop"
    entropy_weight: _Least = 1e-3
    train_interval: _Count = 5
    valid_interval: _Count = 1
    warmup: _Least | Literal["auto"] = 5.0
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    response_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    antithetic: bool = False
    perturbations: _Count = 1
    sub_batches: _Count | Literal["auto"] = "auto"
    per_scale: bool = True
    hyper_pass: HyperPass = "network"
    tune_scale: bool = True
    clip_grad: _Above | None = None
    response_clip: _Above | None = None
    hyper_clip: _Above | None = None
    implicit_solver: SolverName = "cg"
    implicit_steps: _Count = 20
    implicit_damping: _Least = 0.0
    precision: PrecisionName = "fp32"
    channels_last: bool = False
    graph: GraphName = "off"
    patience: _Count | None = None
    monitor: str = "valid_loss"
    monitor_mode: Literal["min", "max"] | None = None
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
                raise ValueError(first_rule(error, given, type(self))) from None

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Options that are not given, or None, become the preset's."""
        chosen = values_of(given.get("preset", "recommended"), get_method(given.get("method", "delta-stn")))
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

    @field_validator("optimizer", "response_optimizer", "hyper_optimizer", mode="before")
    @classmethod
    def _as_pytorch_writes_it(cls, name: Any) -> Any:
        return name.lower() if isinstance(name, str) else name

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
        for name, whole in WHOLE.items():
            if getattr(self, name) != whole and method.responds and not method.trains_apart:
                got = f"{getattr(self, name)} with '{method.name}'"
                raise ValueError(f"`{name}` needs a method that trains Θ apart from w₀, got {got}")
        if self.monitor_mode is None and not self.monitor.endswith("loss"):
            raise ValueError(
                f"`monitor_mode` must be min or max if `monitor` is no loss, got none for {self.monitor!r}"
            )
        if self.min_lr is not None and not self.min_lr < self.lr:
            raise ValueError(f"`min_lr < lr` must hold, got min_lr={self.min_lr:g}, lr={self.lr:g}")
        if self.hyper_pass == "unperturbed" and self.tune_scale and method.responds:
            raise ValueError("`hyper_pass: unperturbed` has no use for σ, so `tune_scale` must be false, got true")
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
        return OTHER_NAMES.get(name, near[0] if near else None)

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
            raise ValueError(f"`graph` must be auto or off for '{method.name}', which keeps its train steps, got 'on'")
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

    @property
    def response_rate(self) -> float:
        """Learning rate of Θ at the start: `response_lr`, or `lr` × `response_fraction`, or 0.001 for `rmsprop`."""
        if self.response_lr is not None:
            return self.response_lr
        return RMSPROP_RATE if self.response_optimizer == "rmsprop" else self.lr * self.response_fraction

    def warmup_train_steps(self, steps_per_epoch: int) -> int:
        """Train steps before the first hyper step, in a run with `steps_per_epoch` train steps in an epoch."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup != "auto":
            return round(self.warmup * steps_per_epoch)
        return min(max(5 * steps_per_epoch, AUTO_WARMUP), self.epochs * steps_per_epoch // 2)

    def hyper_steps(self, steps_per_epoch: int, steps: int | None = None) -> int:
        """Hyper steps in the first train steps of a run.

        Args:
            steps_per_epoch: train steps in an epoch.
            steps: train steps; by default those of the whole run.
        """
        cycles = (self.epochs * steps_per_epoch if steps is None else steps) // self.train_interval
        before = self.warmup_train_steps(steps_per_epoch) // self.train_interval
        return max(0, cycles - before) * self.valid_interval

    def parts(self, statistics: bool, workers: int = 1) -> int:
        """Number of parts into which the examples of a minibatch that train Θ are split.

        Args:
            statistics: whether a layer of the network normalises with the statistics of the batch.
            workers: number of processes that share a minibatch; each splits its own examples.
        """
        if self.sub_batches != "auto":
            return self.sub_batches
        rows = max(1, round(self.response_fraction * self.batch_size / workers))
        return min(AUTO_PARTS, max(2, rows // AUTO_PART_SIZE)) if statistics else 1

    def hyper_rate(self, hyper_steps: int) -> float:
        """Learning rate of λ: `hyper_lr`, or the value that `auto` chooses for a run of `hyper_steps` hyper steps."""
        if self.hyper_lr != "auto":
            return self.hyper_lr
        return min(AUTO_CROSSINGS * 2 * REACH / max(1.0, hyper_steps * self.mean_share), AUTO_MOST)

    def hyper_share(self, progress: float) -> float:
        """Share of the learning rate of λ at a point of the run.

        Args:
            progress: share of the train steps after the warm-up, in [0, 1].
        """
        return float(self.hyper_decay ** (min(int(progress * STAGES), STAGES - 1) / (STAGES - 1)))

    @property
    def mean_share(self) -> float:
        """Mean of `hyper_share` over a run."""
        return sum(self.hyper_share(stage / STAGES) for stage in range(STAGES)) / STAGES
