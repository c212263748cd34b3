"""The optimisers of w₀, Θ, λ and σ, and the learning-rate schedule that w₀ and Θ share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ray_deltastn.methods import laid_out_as
from ray_deltastn.response import Response
from ray_deltastn.space import HyperSpace
from ray_deltastn.training.settings import Settings

#: What in a schedule's state says where it is; the rest are its options, which are the run's own.
_POSITION = ("last_epoch", "_step_count", "best", "num_bad_epochs", "cooldown_counter")


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
        ValueError: if a layer gives sparse gradients and the optimiser of w₀ takes none.
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
        self._response_share = (settings.response_lr or settings.lr) / settings.lr
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
        fused = weights[0].device.type in ("cpu", "cuda")
        self.weights = settings.make_optimizer(weights, fused and not sparse)
        self.response: Optimizer | None = None
        self.hyper: Optimizer | None = None
        if response is not None:
            self.response = settings.make_response_optimizer(response.parameters(), fused)
        if space is not None:
            self.hyper = settings.make_hyper_optimizer(space.lam, space.raw_scale, hyper_lr)
        self.schedule = settings.make_schedule(self.weights)
        self._follow()

    @property
    def lr(self) -> float:
        """Learning rate of w₀ now; Θ's is in proportion."""
        return float(self.weights.param_groups[0]["lr"])

    def end_epoch(self, valid_loss: Callable[[], float]) -> None:
        """Step the schedule; `valid_loss` is asked for only by one that needs it."""
        if self.schedule is None:
            return
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(valid_loss())
        else:
            self.schedule.step()
        self._follow()

    def _follow(self) -> None:
        if self.response is not None:
            for group in self.response.param_groups:
                group["lr"] = self.lr * self._response_share

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
        """Take over moments and position; learning rates, momenta and all other options stay this run's own.

        A learning rate that a schedule had decayed stays decayed by the same factor.
        """
        for name in ("weights", "response", "hyper"):
            optimizer: Optimizer | None = getattr(self, name)
            if optimizer is None:
                continue
            own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            decayed = [group["lr"] for group in state[name]["param_groups"]]
            # Options first: they say on which device a state's count of steps belongs.
            groups = [{**group, **mine} for group, mine in zip(state[name]["param_groups"], own, strict=True)]
            optimizer.load_state_dict({**state[name], "param_groups": groups})
            for parameter, values in optimizer.state.items():
                for key, value in values.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        values[key] = laid_out_as(parameter, value)
            if name == "weights" and self.schedule is not None:
                # Equal base rates give the saved rate itself, to the bit.
                factor = 1.0 if self.base_lr == state["base_lr"] else self.base_lr / state["base_lr"]
                for group, lr in zip(optimizer.param_groups, decayed, strict=True):
                    group["lr"] = lr if factor == 1.0 else lr * factor
        if self.schedule is not None:
            self.schedule.__dict__.update(state["schedule"])
            self.schedule._last_lr = [group["lr"] for group in self.weights.param_groups]
        self._follow()
