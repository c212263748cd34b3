"""What a user provides: model, hyperparameters, data and objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ray_deltastn.methods import Loss
from ray_deltastn.regularizers import Augmentation, Penalty, Regularizer
from ray_deltastn.space import HyperSpace


@dataclass
class Task:
    """A network to train and the hyperparameters to tune while it trains.

    Args:
        space: the hyperparameters; each must be used by a regulariser in `model`, `augment` or a penalty.
        model: any module that maps a batch of inputs (B, …) to a tensor; its class and `state_dict` stay as they are.
        loss: `loss(output, target)`, returns a mean () or one value per example (B,).
        train: training data: a pair of tensors `(x, y)`, a `Dataset` or a `DataLoader`, of examples `(x, y)`.
        valid: validation data, on which the hyperparameters are tuned.
        test: test data, only ever reported; None for none.
        augment: one or more augmentations of the training inputs.
        penalty: one or more penalties in the training objective.
        valid_loss: loss on validation data, by default `loss`.
        valid_penalty: one or more penalties in the validation objective, which then depends on λ directly (2.4).
        metrics: name → `metric(output, target)`, a mean over the batch; reported as `valid_<name>`, `test_<name>`.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if a regulariser names an unknown hyperparameter or one whose domain does not suit it, or a
            hyperparameter is used by nobody.
    """

    space: HyperSpace
    model: nn.Module
    loss: Loss
    train: Any
    valid: Any
    test: Any = None
    augment: Augmentation | Sequence[Augmentation] = ()
    penalty: Penalty | Sequence[Penalty] = ()
    valid_loss: Loss | None = None
    valid_penalty: Penalty | Sequence[Penalty] = ()
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        #: Whether a SelfTuner has its hooks and bindings on the model.
        self.in_use = False
        if not isinstance(self.space, HyperSpace):
            raise TypeError(f"`space` must be a HyperSpace, got {type(self.space).__name__}")
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"`model` must be an nn.Module, got {type(self.model).__name__}")
        for what, function in (("loss", self.loss), ("valid_loss", self.valid_loss), *self.metrics.items()):
            if function is not None and not callable(function):
                raise TypeError(f"`{what}` must be callable as {what}(output, target), got {function!r}")
        self.augmentations: tuple[Augmentation, ...] = _several(self.augment, "augment")
        self.penalties: tuple[Penalty, ...] = _several(self.penalty, "penalty")
        self.valid_penalties: tuple[Penalty, ...] = _several(self.valid_penalty, "valid_penalty")
        used: set[str] = set()
        users: list[Any] = [*self.regularizers, *self.augmentations, *self.penalties, *self.valid_penalties]
        for user in users:
            self.space.require(user.names, f"`{type(user).__name__}`")
            if hasattr(user, "check"):
                user.check(self.space)
            used.update(user.names)
        for name in self.space.names:
            if name not in used:
                raise ValueError(
                    f"every hyperparameter must be used by a regulariser, got none for '{name}'; give it to a layer of "
                    "the model, to `augment` or to `penalty`"
                )

    @property
    def regularizers(self) -> list[Regularizer]:
        """The model's layers that read hyperparameters."""
        return [m for m in self.model.modules() if isinstance(m, Regularizer)]

    @property
    def samplers(self) -> list[Any]:
        """The users of hyperparameters whose effect is drawn at random: layers of the model and augmentations."""
        return [*self.regularizers, *self.augmentations]


def _several(given: Any, what: str) -> tuple[Any, ...]:
    several = tuple(given) if isinstance(given, Sequence) else (given,)
    for one in several:
        if not callable(one) or not hasattr(one, "names"):
            raise TypeError(f"`{what}` must be callable and have `names`, such as `rd.L2('weight_decay')`, got {one!r}")
    return several
