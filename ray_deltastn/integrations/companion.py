"""A tuner beside the training loop of another library: the loop moves w₀, and the tuner moves Θ, λ and σ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ray_deltastn.methods import Method, MethodName, Steps, Workers, get_method
from ray_deltastn.task import Task
from ray_deltastn.training.columns import SCALES, VALUES
from ray_deltastn.training.loaders import LoaderStream
from ray_deltastn.training.options import Options
from ray_deltastn.training.presets import values_of
from ray_deltastn.training.random_state import isolated
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.shares import Shared
from ray_deltastn.training.tuner import SelfTuner

#: Options that the other loop decides, or that only a loop of this package has.
DECIDED = (
    "batch_size",
    "channels_last",
    "clip_grad",
    "device",
    "epochs",
    "graph",
    "hyperparameters",
    "lr",
    "min_lr",
    "momentum",
    "monitor",
    "monitor_mode",
    "optimizer",
    "patience",
    "precision",
    "schedule",
    "steps_per_report",
    "weight_decay",
)
#: Parts of a state that the other loop keeps itself.
_ELSEWHERE = ("model", "best")
_KINDS = {torch.optim.SGD: "sgd", torch.optim.AdamW: "adamw", torch.optim.Adam: "adam"}


class Companion(SelfTuner):
    """The response, λ and σ of a network whose weights w₀ another loop trains.

    For each minibatch the loop calls `begin`, its own passes and `add_penalties`, its optimiser, and then `end`.

    Args:
        task: model, hyperparameters, loss and data; `train` is the loader of the loop, which is not read except for a
            few examples before the first step.
        method: `delta-stn` or `centered-stn`.
        optimizer: the optimiser of the loop. The learning rate of Θ follows its learning rate in proportion. With
            `preset: paper` Θ gets one of the same kind (Adam for other kinds than SGD, Adam and AdamW).
        steps_per_epoch: steps of that optimiser in an epoch.
        epochs: epochs of the loop.
        precision: `fp32` or `bf16`.
        options: options of the run that the loop does not decide, see `Settings`, by name.
        workers: the processes of the loop, if it trains one network on several. A minibatch given to `end` holds the
            rows of this worker.

    Raises:
        ValueError: if an option, the data or the loss breaks a rule, or the loop decides the option.
        TypeError: if an argument is of the wrong kind, or a layer has no forward-mode rule.
    """

    def __init__(
        self,
        task: Task,
        method: MethodName | Method,
        optimizer: Optimizer,
        steps_per_epoch: int,
        epochs: int,
        precision: str,
        options: Options,
        workers: Workers | None = None,
    ) -> None:
        require_free(options)
        if not get_method(method).trains_apart:
            raise ValueError(
                f"`method` must be delta-stn or centered-stn inside the loop of another library, got {method!r}"
            )
        self._steps_per_epoch = steps_per_epoch
        group = optimizer.param_groups[0]
        self._first_lr = float(group.get("initial_lr", group["lr"]))
        if not self._first_lr > 0:
            raise ValueError(f"the optimiser must start with `lr > 0`, got {self._first_lr:g}")
        preset = options.get("preset", Settings.model_fields["preset"].default)
        chosen = values_of(preset, get_method(method))["response_optimizer"]
        given: dict[str, Any] = {**options}
        given["response_optimizer"] = options.get("response_optimizer") or chosen or _kind(optimizer)
        given |= {"lr": self._first_lr, "momentum": group.get("momentum", 0.9), "precision": precision}
        given |= {"epochs": epochs, "device": next(task.model.parameters()).device}
        if getattr(task.train, "batch_size", None):  # else the loader has a batch sampler
            given["batch_size"] = task.train.batch_size * (1 if workers is None else workers.size)
        with kept_modes(task.model):
            super().__init__(task, method, workers=workers, **given)
        assert isinstance(self.algorithm, Steps)
        self.optimizer = optimizer

    def _make_streams(self) -> None:
        super()._make_streams()
        if isinstance(self.train, Shared):
            self.train.is_split = True  # each process of the loop has its own minibatches
        train = self.train.whole
        assert isinstance(train, LoaderStream)
        train._length = self._steps_per_epoch  # accumulated gradients take several minibatches for a step
        self._count_steps()

    def begin(self) -> None:
        """Give the layers of the model the present s(λ), for the passes of the loop."""
        with torch.no_grad():
            self.pass_values.values = self.space.named(self.space.values())

    def augmented(self, x: Tensor) -> Tensor:
        """Inputs (B, …) under the task's augmentations at the present s(λ), after `begin`."""
        for augmentation in self.objective.augment:
            x = augmentation(x, self.pass_values)
        return x

    def add_penalties(self) -> None:
        """Add the gradients of the task's penalties at s(λ) to those of w₀."""
        if not self.objective.penalty:
            return
        with torch.no_grad():
            named = self.space.named(self.space.values())
        start = torch.zeros((), device=self.device)
        term = self.objective._penalised(start, self.objective.penalty, named, None)
        gradients = torch.autograd.grad(term, self._trainable, allow_unused=True)
        for parameter, gradient in zip(self._trainable, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def end(self, x: Any, y: Any, lr: float) -> None:
        """Move Θ after a step of the loop's optimiser, and λ and σ at the end of a cycle.

        Args:
            x: inputs (B, …) of the minibatch, before augmentation.
            y: its targets.
            lr: learning rate of w₀ in this step.
        """
        assert self.optimizers.response is not None
        assert isinstance(self.algorithm, Steps)
        self.optimizers.follow(lr)
        self.algorithm.response_step(*self.workers.keep(x, y))
        self.steps += 1
        if self.steps > self.warmup_steps and self.steps % self.settings.train_interval == 0:
            with kept_modes(self.model):
                self._hyper_steps()
        if self.steps % len(self.train) == 0:
            self.in_force.note(self.steps)
            self.in_force.end_epoch(len(self.train))
            with kept_modes(self.model):
                self._note(lr)

    def now(self) -> dict[str, Tensor]:
        """The hyperparameters and their scales σ, by the names of a report's columns; no wait for the device."""
        values, scale = self.objective.current_values(), self.space.scale.detach()
        return {**VALUES.named(self.space.named(values)), **SCALES.named(self.space.named(scale))}

    def _note(self, lr: float) -> None:
        """Keep a report about the epoch; losses are the loop's."""
        self.workers.check(self._moved())
        size = self.response_size()
        taken = self.settings.hyper_steps(len(self.train), self.steps)
        about = {"epoch": self.epoch, "steps": self.steps, "hyper_steps": taken, "lr": lr, "response_size": size}
        values = {name: float(value) for name, value in self.now().items()}
        self.last_report = {**about, **values, **self.health.report(size)}
        self._history.add(self.last_report)
        self.health.reset()

    def step(self) -> dict[str, Any]:
        """The loop takes the steps.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("`step` is for a run of this package, got a tuner inside the loop of another library")

    def state_dict(self) -> dict[str, Any]:
        """All that Θ, λ and σ need to continue to the bit; the loop keeps the weights w₀."""
        return {part: value for part, value in super().state_dict().items() if part not in _ELSEWHERE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, with the weights that the model has.

        Raises:
            ValueError: if the state is not one of a run with this space, method, optimisers and model.
        """
        mine = {"model": self.model.state_dict(), "best": self.best.state_dict()}
        super().load_state_dict({**state, **mine})


def require_free(options: Mapping[str, Any]) -> None:
    """Raise ValueError with the first option that another loop decides."""
    for name in options:
        if name in DECIDED:
            raise ValueError(f"`{name}` must not be given, because the other library decides it, got {options[name]!r}")


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Context after which each module is in training or evaluation mode as it was before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def shuffled(loader: Any, times: int = 1) -> DataLoader[Any]:
    """A loader of the same data in random order, in minibatches of the same size, in this process.

    Args:
        loader: the loader.
        times: size of a minibatch, in minibatches of the loader.
    """
    size = loader.batch_size
    if size is None and loader.batch_sampler is not None:  # a loader of Accelerate, or one with a sampler of the user
        size = getattr(loader.batch_sampler, "batch_size", None)
        if size is None:
            with isolated(0, torch.device("cpu")):
                size = len(next(iter(loader.batch_sampler)))
    return DataLoader(loader.dataset, size and times * size, shuffle=True, collate_fn=loader.collate_fn)


def _kind(optimizer: Optimizer) -> str:
    """Name of the optimiser for Θ that is nearest to that of the loop."""
    return next((name for kind, name in _KINDS.items() if isinstance(optimizer, kind)), "adam")
