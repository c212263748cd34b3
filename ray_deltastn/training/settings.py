"""How a run trains: every option of `SelfTuner` and of a trial, with the paper's defaults."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, ReduceLROnPlateau, StepLR

from ray_deltastn.methods import Method, get_method
from ray_deltastn.training.fused_sgd import FusedSGD
from ray_deltastn.training.rules import require_number, require_whole

SCHEDULES: dict[str, Any] = {
    "step": StepLR,
    "multistep": MultiStepLR,
    "cosine": CosineAnnealingLR,
    "plateau": ReduceLROnPlateau,
}
OPTIMIZERS = ("sgd", "adam", "adamw")
HYPER_OPTIMIZERS = ("rmsprop", "adam")
SOLVERS = ("cg", "neumann")
PRECISIONS = ("fp32", "tf32", "bf16")
GRAPHS = ("auto", "on", "off")
#: preset → what the options that are not given become.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"response_fraction": 1.0, "antithetic": False, "hyper_lr": 0.01, "warmup": 5},
    "fast": {"response_fraction": 0.25, "antithetic": True, "hyper_lr": "auto", "warmup": "auto"},
}
#: Smallest and largest learning rate of λ that `auto` chooses, and the way (hyper steps × learning rate) in between.
AUTO_LEAST, AUTO_MOST, AUTO_WAY = 0.01, 0.1, 8.0
#: Train steps before the first hyper step where `auto` decides: five epochs of the paper's FashionMNIST.
AUTO_WARMUP = 2000


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Attributes:
        method: `delta-stn`, `centered-stn`, `stn`, `ift`, `unrolled` or `fixed` (or a `Method` of your own).
        preset: `paper`, Algorithms 1 and 2 as written, or `fast`, 40 % cheaper in FLOPs, with a warm-up and a learning
            rate of λ that fit the length of the run; it decides options that are not given.
        epochs: passes over the training data.
        batch_size: examples in a training minibatch.
        valid_batch_size: examples in a validation minibatch of a hyper step; by default `batch_size`.
        lr: learning rate α₁ of w₀ and Θ.
        momentum: momentum of SGD; the first beta of Adam and AdamW.
        optimizer: `sgd`, `adam` or `adamw`, for w₀ and Θ.
        response_lr: learning rate of Θ; by default `lr`, as in the paper. It follows the schedule in proportion.
        response_optimizer: `sgd`, `adam` or `adamw`, for Θ; by default `optimizer`, as in the paper.
        weight_decay: the optimiser's own constant weight decay of w₀; zero for AdamW too, unless given. To tune it, use
            the penalty `L2` instead.
        schedule: learning-rate schedule of w₀ and Θ, stepped once per epoch: `step`, `multistep`, `cosine` or
            `plateau`, or a mapping with `name` and the arguments of PyTorch's scheduler.
        hyper_lr: learning rate α₂ of λ; by default the preset's, 0.01 for `paper` and `auto` for `fast`. `auto` goes
            beyond the paper: 8 / (number of hyper steps planned), at least 0.01 and at most 0.1, so that a short run
            can move λ as far as a long one.
        scale_lr: learning rate α₃ of σ; by default `hyper_lr`.
        hyper_optimizer: `rmsprop` or `adam`, for λ and σ.
        entropy_weight: τ, weight of the perturbation's entropy.
        train_interval: T_train, train steps in a cycle.
        valid_interval: T_valid, hyper steps in a cycle.
        warmup: epochs without hyper steps at the start; by default the preset's, 5 for `paper` and `auto` for `fast`.
            `auto` goes beyond the paper: 5 epochs or 2,000 train steps, whichever is more, but at most half the run. A
            network that still underfits asks for less regularisation, down to where λ has no gradient any more.
        warmup_steps: the same in train steps; overrides `warmup`.
        response_fraction: share of each minibatch that trains Θ, in (0, 1]; by default the preset's, 1 for `paper` and
            ¼ for `fast`. Methods that train Θ along with w₀ take the whole. The share is the minibatch's first
            examples, so a loader of your own should shuffle.
        antithetic: of that share, train Θ on half of the examples, each under ε and under −ε: on some tasks less noise
            for the same arithmetic. By default the preset's, no for `paper` and yes for `fast`; methods that train Θ
            along with w₀ do not, nor shares of fewer than four examples.
        tune_scale: tune σ; otherwise it stays at its initial value.
        clip_grad: largest gradient norm of w₀, and of Θ; None for no clipping.
        implicit_solver: for `ift`: `cg`, or `neumann` with the learning rate as its step.
        implicit_steps: for `ift`: products with the Hessian in a hyper step.
        implicit_damping: for `ift`: added to the Hessian's diagonal.
        precision: `fp32`; `tf32`, with factors of float32 products and convolutions rounded to 10 bits where the device
            can; or `bf16`, with the network's passes under autocast, and random numbers, losses, penalties and
            parameters in float32.
        channels_last: keep images and the weights of 2-d convolutions in channels-last order of memory, which may be
            faster (`benchmarks.speed --channels-last` tells); the network must not `view` its feature maps, `flatten`
            or `reshape` do.
        graph: `off`; `on`, each step captured once and replayed, on a GPU as a CUDA graph, on a CPU as the list of its
            operations, which takes about half the time for a tiny network; or `auto`, which is `on` for a GPU where
            the step allows it, and `off` for a CPU. On a CPU the first replay is compared with the step itself and
            refused unless the numbers are the same to the bit (layer normalisation under `delta-stn`, say, is not).
            What a step does besides (counters, prints, hooks of optimisers, changing a loss weight) happens at the
            capture only; a step that reads a number from a tensor or draws from Python's or NumPy's random numbers
            is not captured.
        patience: stop after so many reports without a better validation loss; None for never.
        steps_per_report: train steps between reports; by default an epoch.
        hyperparameters: for `fixed`: name → value, or one value per epoch.
        seed: seed of order, perturbations, dropout and initial response.
        device: `auto`, `cpu`, `cuda`, …

    Raises:
        ValueError: if an option breaks its rule; the message names the rule and the value got.
    """

    method: str | Method = "delta-stn"
    preset: str = "paper"
    epochs: int = 100
    batch_size: int = 128
    valid_batch_size: int | None = None
    lr: float = 0.01
    momentum: float = 0.9
    optimizer: str = "sgd"
    response_lr: float | None = None
    response_optimizer: str | None = None
    weight_decay: float = 0.0
    schedule: str | Mapping[str, Any] | None = None
    hyper_lr: float | str | None = None
    scale_lr: float | None = None
    hyper_optimizer: str = "rmsprop"
    entropy_weight: float = 1e-3
    train_interval: int = 5
    valid_interval: int = 1
    warmup: float | str | None = None
    warmup_steps: int | None = None
    response_fraction: float | None = None
    antithetic: bool | None = None
    tune_scale: bool = True
    clip_grad: float | None = None
    implicit_solver: str = "cg"
    implicit_steps: int = 20
    implicit_damping: float = 0.0
    precision: str = "fp32"
    channels_last: bool = False
    graph: str = "off"
    patience: int | None = None
    steps_per_report: int | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        method = get_method(self.method)
        if self.preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        apart = method.responds and method.split
        for name, whole in (("response_fraction", 1.0), ("antithetic", False)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, PRESETS[self.preset][name] if apart else whole)
        for name in ("hyper_lr", "warmup"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, PRESETS[self.preset][name])
        for name in ("epochs", "batch_size", "train_interval", "valid_interval", "implicit_steps"):
            require_whole(name, getattr(self, name), 1)
        for name in ("valid_batch_size", "patience", "steps_per_report"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), 1)
        if self.warmup_steps is not None:
            require_whole("warmup_steps", self.warmup_steps, 0)
        require_whole("seed", self.seed, 0)
        for name in ("tune_scale", "channels_last", "antithetic"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be true or false, got {getattr(self, name)!r}")
        require_number("lr", self.lr, above=0.0)
        for name, rule in (("hyper_lr", {"above": 0.0}), ("warmup", {"least": 0.0})):
            value = getattr(self, name)
            if isinstance(value, str) and value != "auto":
                raise ValueError(f"`{name}` must be a number or 'auto', got {value!r}")
            if value != "auto":
                require_number(name, value, **rule)
        for name in ("response_lr", "scale_lr", "clip_grad"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), above=0.0)
        for name in ("entropy_weight", "weight_decay", "implicit_damping"):
            require_number(name, getattr(self, name), least=0.0)
        require_number("momentum", self.momentum, least=0.0, below=1.0)
        require_number("response_fraction", self.response_fraction, above=0.0, most=1.0)
        if isinstance(self.graph, bool):  # YAML's own reading of `on` and `off`
            object.__setattr__(self, "graph", "on" if self.graph else "off")
        choices = (
            ("optimizer", OPTIMIZERS),
            ("response_optimizer", OPTIMIZERS),
            ("hyper_optimizer", HYPER_OPTIMIZERS),
            ("implicit_solver", SOLVERS),
            ("precision", PRECISIONS),
            ("graph", GRAPHS),
        )
        for name, known in choices:
            if getattr(self, name) not in known and (name, getattr(self, name)) != ("response_optimizer", None):
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, whole in (("response_fraction", 1.0), ("antithetic", False)):
            if getattr(self, name) != whole and method.responds and not apart:
                got = f"{getattr(self, name)} with '{method.name}'"
                raise ValueError(f"`{name}` needs a method that trains Θ apart from w₀, got {got}")
        if method.hypergradient == "unrolled" and self.optimizer != "sgd":
            raise ValueError(f"`optimizer` must be sgd for '{method.name}', got {self.optimizer!r}")
        if method.hypergradient == "implicit" and self.optimizer == "adamw" and self.weight_decay:
            raise ValueError(
                f"`weight_decay` of adamw is no part of the loss that '{method.name}' differentiates, got "
                f"{self.weight_decay}; use sgd or adam, or the penalty `L2`"
            )
        if self.hyperparameters and method.tunes:
            raise ValueError(
                f"`hyperparameters` are constants for method 'fixed', got them with '{method.name}'; set initial "
                "values in the HyperSpace"
            )
        if not isinstance(self.hyperparameters, Mapping):
            raise ValueError(f"`hyperparameters` must be a mapping from names, got {self.hyperparameters!r}")
        try:
            self.torch_device()
        except (RuntimeError, TypeError):
            raise ValueError(f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:0', …, got {self.device!r}") from None
        self._schedule_arguments()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all options."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def require_known(cls, given: Iterable[str]) -> None:
        """Raise ValueError, with the option that was probably meant, for the first name that is none."""
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

    def _schedule_arguments(self) -> tuple[str, dict[str, Any]] | None:
        if self.schedule is None:
            return None
        if not isinstance(self.schedule, str | Mapping):
            raise ValueError(f"`schedule` must be a name or a mapping with `name`, got {self.schedule!r}")
        given: dict[str, Any] = {"name": self.schedule} if isinstance(self.schedule, str) else dict(self.schedule)
        name = given.pop("name", None)
        if name not in SCHEDULES:
            raise ValueError(f"`schedule` must be one of {', '.join(SCHEDULES)}, got {name!r}")
        if name == "cosine":
            given.setdefault("T_max", self.epochs)
        dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], self.lr)
        try:
            schedule = SCHEDULES[name](dummy, **given)
            dummy.step()
            schedule.step(*([1.0] if name == "plateau" else []))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(
                f"`schedule` must hold the arguments of {SCHEDULES[name].__name__}, got {given}: {error}"
            ) from None
        return name, given

    def torch_device(self) -> torch.device:
        """The training device; `auto` is CUDA where there is one."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def make_optimizer(self, weights: list[torch.nn.Parameter], fused: bool = False) -> Optimizer:
        """Optimiser of w₀.

        Args:
            weights: the trainable weights.
            fused: move a parameter in one kernel, which takes dense gradients on a CPU or CUDA device only.
        """
        return self._optimizer(self.optimizer, weights, self.lr, self.weight_decay, fused)

    def make_response_optimizer(self, response: Iterable[torch.nn.Parameter], fused: bool = False) -> Optimizer:
        """Optimiser of Θ, which is never decayed: that would bias the response."""
        kind = self.response_optimizer or self.optimizer
        return self._optimizer(kind, list(response), self.response_lr or self.lr, 0.0, fused)

    def _optimizer(self, kind: str, parameters: Any, lr: float, weight_decay: float, fused: bool) -> Optimizer:
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        if kind == "sgd":
            return (FusedSGD if fused else torch.optim.SGD)(parameters, momentum=self.momentum, **options)
        adam = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
        capturable = self._capturable(parameters[0])
        return adam(parameters, betas=(self.momentum, 0.999), fused=fused or None, capturable=capturable, **options)

    def _capturable(self, parameter: torch.Tensor) -> bool:
        return parameter.device.type == "cuda" and self.captures(parameter.device)

    def captures(self, device: torch.device) -> bool:
        """Whether the steps of a run on this device are to be captured.

        Raises:
            ValueError: if they must be and cannot.
        """
        method = get_method(self.method)
        looks_back = method.hypergradient in ("implicit", "unrolled")
        able = device.type in ("cpu", "cuda")
        if self.graph == "on" and not able:
            raise ValueError(f"`graph` must be auto or off but on cpu and cuda, got 'on' for device {device.type}")
        if self.graph == "on" and looks_back:
            raise ValueError(f"`graph` must be auto or off for '{method.name}', whose steps look back, got 'on'")
        return able and not looks_back and (self.graph == "on" or (self.graph == "auto" and device.type == "cuda"))

    def warmup_train_steps(self, steps_per_epoch: int) -> int:
        """Train steps before the first hyper step, of a run with so many train steps in an epoch."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup != "auto":
            assert self.warmup is not None
            return round(float(self.warmup) * steps_per_epoch)
        return min(max(5 * steps_per_epoch, AUTO_WARMUP), self.epochs * steps_per_epoch // 2)

    def hyper_rate(self, hyper_steps: int) -> float:
        """Learning rate of λ in a run of so many hyper steps: `hyper_lr`, or what `auto` makes of it."""
        assert self.hyper_lr is not None
        if self.hyper_lr != "auto":
            return float(self.hyper_lr)
        return min(max(AUTO_WAY / max(1, hyper_steps), AUTO_LEAST), AUTO_MOST)

    def make_hyper_optimizer(self, lam: torch.nn.Parameter, raw_scale: torch.nn.Parameter, rate: float) -> Optimizer:
        """Optimiser for λ, at this learning rate, and, if tuned, σ."""
        groups: list[dict[str, Any]] = [{"params": [lam], "lr": rate}]
        if self.tune_scale:
            groups.append({"params": [raw_scale], "lr": self.scale_lr or rate})
        options: dict[str, Any] = {"lr": rate, "capturable": self._capturable(lam)}
        if self.hyper_optimizer == "rmsprop":
            return torch.optim.RMSprop(groups, **options)
        return torch.optim.Adam(groups, fused=lam.device.type in ("cpu", "cuda") or None, **options)

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler | ReduceLROnPlateau | None:
        """Learning-rate schedule, PyTorch's own, or None."""
        chosen = self._schedule_arguments()
        return None if chosen is None else SCHEDULES[chosen[0]](optimizer, **chosen[1])
