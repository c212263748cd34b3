"""The optimisers of w₀, Θ, λ and σ, and the learning-rate schedule that w₀ and Θ share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ray_deltastn.response import Response
from ray_deltastn.space import HyperSpace
from ray_deltastn.training.options import OptimizerName, ResponseOptimizerName
from ray_deltastn.training.schedule import make_schedule
from ray_deltastn.training.settings import Settings

#: Keys of a schedule's state that are its position. All other keys are options. The options of the run replace them.
_POSITION = ("last_epoch", "_step_count", "best", "num_bad_epochs", "cooldown_counter")

#: Momentum of Θ with RMSProp. The learning rate is multiplied by 1 − momentum: the direction is a mean, as with Adam.
RMSPROP_MOMENTUM = 0.9


class Optimizers:
    """PyTorch's optimisers and schedule for one run.

    Args:
        settings: kinds, learning rates and schedule.
        model: the network, whose trainable weights are w₀.
        response: Θ, or None for a method without response.
        space: λ and σ, or None for a method that moves neither.
        hyper_lr: learning rate of λ.

    Attributes:
        weights: optimiser of w₀.
        response: optimiser of Θ, or None.
        hyper: optimiser of λ and, if it is tuned, σ, or None.

    Raises:
        ValueError: if a layer gives sparse gradients and the optimiser of w₀ does not accept them.
    """

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        response: Response | None,
        space: HyperSpace | None,
        hyper_lr: float,
    ) -> None:
        self.base_lr = settings.lr
        kind = settings.response_optimizer or settings.optimizer
        averaged = 1 - RMSPROP_MOMENTUM if kind == "rmsprop" else 1.0
        self._response_share = settings.response_rate * averaged / settings.lr
        weights = [p for p in model.parameters() if p.requires_grad]
        sparse = [
            name
            for name, layer in model.named_modules()
            if getattr(layer, "sparse", False) and any(p.requires_grad for p in layer.parameters(recurse=False))
        ]
        if sparse and settings.optimizer != "sgd":
            raise ValueError(
                f"`optimizer` must be sgd for layers with `sparse=True`, got {settings.optimizer!r} for '{sparse[0]}'"
            )
        capturable = weights[0].device.type == "cuda" and settings.captures(weights[0].device)
        options: dict[str, Any] = {"momentum": settings.momentum, "capturable": capturable}
        self.weights = _first_order(
            settings.optimizer, weights, settings.lr, weight_decay=settings.weight_decay, **options
        )
        self.response: Optimizer | None = None
        self.hyper: Optimizer | None = None
        if response is not None:
            # Θ is never decayed: that would bias the response.
            theta, rate = list(response.parameters()), settings.response_rate
            self.response = _first_order(kind, theta, rate, weight_decay=0.0, **options)
        if space is not None:
            self.hyper = _hyper(settings, space, hyper_lr, capturable)
            self._hyper_rates = [group["lr"] for group in self.hyper.param_groups]
        self.schedule = make_schedule(settings.schedule, settings.epochs, self.weights)
        self.follow(self.lr)

    @property
    def lr(self) -> float:
        """Learning rate of w₀ now; the learning rate of Θ is in proportion to it."""
        return float(self.weights.param_groups[0]["lr"])

    def set_hyper_share(self, share: float) -> None:
        """Set the learning rates of λ and σ to a share of those at the start of the run."""
        assert self.hyper is not None
        for group, rate in zip(self.hyper.param_groups, self._hyper_rates, strict=True):
            group["lr"] = rate * share

    def end_epoch(self, valid_loss: Callable[[], float]) -> None:
        """Step the schedule; only a `plateau` schedule calls `valid_loss`."""
        if self.schedule is None:
            return
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(valid_loss())
        else:
            self.schedule.step()
        self.follow(self.lr)

    def follow(self, lr: float) -> None:
        """Set the learning rate of Θ in proportion to one of w₀."""
        if self.response is not None:
            for group in self.response.param_groups:
                group["lr"] = lr * self._response_share

    def state_dict(self) -> dict[str, Any]:
        """Moments of all optimisers and the schedule's position."""
        schedule = {} if self.schedule is None else self.schedule.state_dict()
        return {
            "weights": self.weights.state_dict(),
            "response": None if self.response is None else self.response.state_dict(),
            "hyper": None if self.hyper is None else self.hyper.state_dict(),
            "schedule": {name: schedule[name] for name in _POSITION if name in schedule},
            "base_lr": self.base_lr,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the moments and the schedule's position from a state; learning rates and other options do not change.

        A learning rate that a schedule had decayed stays decayed by the same factor.
        """
        for name in ("weights", "response", "hyper"):
            optimizer: Optimizer | None = getattr(self, name)
            if optimizer is None:
                continue
            own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            decayed = [group["lr"] for group in state[name]["param_groups"]]
            # Options first: they decide on which device PyTorch puts the count of steps.
            groups = [{**group, **mine} for group, mine in zip(state[name]["param_groups"], own, strict=True)]
            optimizer.load_state_dict({**state[name], "param_groups": groups})
            if name == "weights" and self.schedule is not None:
                # With equal base rates the result is the saved rate, to the bit.
                factor = 1.0 if self.base_lr == state["base_lr"] else self.base_lr / state["base_lr"]
                for group, lr in zip(optimizer.param_groups, decayed, strict=True):
                    group["lr"] = lr if factor == 1.0 else lr * factor
        if self.schedule is not None:
            self.schedule.__dict__.update(state["schedule"])
            self.schedule._last_lr = [group["lr"] for group in self.weights.param_groups]
        self.follow(self.lr)


def _first_order(
    kind: OptimizerName | ResponseOptimizerName,
    parameters: list[nn.Parameter],
    lr: float,
    *,
    momentum: float,
    weight_decay: float,
    capturable: bool,
) -> Optimizer:
    """Optimiser of w₀ or Θ."""
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)
    if kind == "rmsprop":
        return torch.optim.RMSprop(parameters, lr, momentum=RMSPROP_MOMENTUM, capturable=capturable)
    adam = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    return adam(parameters, lr, (momentum, 0.999), weight_decay=weight_decay, capturable=capturable)


def _hyper(settings: Settings, space: HyperSpace, rate: float, capturable: bool) -> Optimizer:
    """Optimiser of λ, at this learning rate, and of σ if it is tuned."""
    groups: list[dict[str, Any]] = [{"params": [space.lam], "lr": rate}]
    if settings.tune_scale:
        groups.append({"params": [space.raw_scale], "lr": settings.scale_lr or rate})
    kind = torch.optim.RMSprop if settings.hyper_optimizer == "rmsprop" else torch.optim.Adam
    return kind(groups, lr=rate, capturable=capturable)
