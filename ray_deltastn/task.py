"""What a user provides: model, hyperparameters, data and objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ray_deltastn.methods import Loss
from ray_deltastn.regularizers import ActivationPenalty, Augmentation, Penalty, Regularizer
from ray_deltastn.response.trees import described, tensors
from ray_deltastn.space import HyperSpace
from ray_deltastn.training.segments import Segments
from ray_deltastn.training.split_metrics import OfLoss

#: Modules of PyTorch that spread a model over devices.
_PARALLEL = ("torch.nn.parallel", "torch.distributed")


@dataclass
class Task:
    """A network to train and the hyperparameters to tune while it trains.

    Args:
        space: the hyperparameters. A layer of `model`, an augmentation or a penalty must use each of them.
        model: any module that maps a batch of inputs (B, …) to a tensor, or to nested tensors such as a dictionary or a
            dataclass. Its class and its `state_dict` do not change. Inputs that are a mapping become its keyword
            arguments, a tuple or list its positional ones.
        loss: `loss(output, target)`, which returns a mean () or one value per example (B,).
        train: training data: a pair of tensors `(x, y)`, or a `Dataset` or `DataLoader` with examples `(x, y)`. x and y
            may be nested: dictionaries, tuples or dataclasses of tensors with one entry per example. For a corpus,
            `rd.Segments`.
        valid: validation data, used to tune the hyperparameters.
        test: test data, used for reports only. None means no test data.
        augment: one or more augmentations of the training inputs.
        penalty: one or more penalties in the training objective.
        valid_loss: loss on validation data. The default is `loss`.
        valid_penalty: one or more penalties in the validation objective, which then depends on λ directly (Eqn. 2.4).
        batch: how to take inputs and targets from data that are not pairs, such as the dictionaries of a tokeniser. A
            key: the inputs are all other entries, and the target that the loss gets is the whole batch. A function:
            `batch(one)` returns (x, y).
        metrics: name → `metric(output, target)`, a mean () or one value per example (B,), reported as `valid_<name>`
            and `test_<name>`. The mean over the examples of a split counts. `rd.over_split(metric)` is called once
            with the outputs and targets of the whole split, as F1 needs it. `rd.Perplexity()` and
            `rd.BitsPerCharacter()` follow from the loss of the split. One with the name `accuracy` takes the place of
            the built-in one.
        identity: name → text, such as a fingerprint of the vocabulary. A saved state that is loaded must come from a
            task with the same texts.

    Raises:
        TypeError: if an argument has the wrong type, or the model is compiled, scripted or spread over devices.
        ValueError: if the model has a lazy parameter, if a regulariser names an unknown hyperparameter, if the domain
            of a hyperparameter does not suit its regulariser, or if a hyperparameter is not used.
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
    metrics: Mapping[str, Callable[[Any, Any], Tensor] | OfLoss] = field(default_factory=dict)
    batch: str | Callable[[Any], tuple[Any, Any]] | None = None
    identity: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.batch is None or isinstance(self.batch, str) or callable(self.batch)):
            raise TypeError(f"`batch` must be a key or a function, got {self.batch!r}")
        #: Whether the model carries the hooks and the bindings of a `SelfTuner`.
        self.in_use = False
        if not isinstance(self.space, HyperSpace):
            raise TypeError(f"`space` must be a HyperSpace, got {type(self.space).__name__}")
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"`model` must be an nn.Module, got {type(self.model).__name__}")
        _require_plain(self.model)
        for name, metric in self.metrics.items():
            if isinstance(metric, type) and issubclass(metric, OfLoss):
                raise TypeError(f"`metrics[{name!r}]` must be `{metric.__name__}()`, got the class itself")
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
                    f"every hyperparameter of `space` must be used by a regulariser, got none for '{name}'; "
                    f"{self._advice(name)}"
                )

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        sizes = [f"{_size(data)} {split}" for split, data in splits.items() if data is not None]
        lines = [
            f"model: {type(self.model).__name__}, {weights:,} trainable weights",
            f"hyperparameters: {', '.join(self.space.names)}",
            f"examples: {', '.join(sizes)}",
            f"loss: {getattr(self.loss, '__name__', type(self.loss).__name__)}",
        ]
        users: dict[str, Sequence[Any]] = {
            "augment": self.augmentations,
            "penalty": self.penalties,
            "valid penalty": self.valid_penalties,
        }
        for what, given in users.items():
            if given:
                named = (f"{type(one).__name__}({', '.join(one.names)})" for one in given)
                lines.append(f"{what}: {', '.join(named)}")
        if self.metrics:
            lines.append(f"metrics: {', '.join(self.metrics)}")
        return "\n  ".join(["Task", *lines])

    def _advice(self, name: str) -> str:
        """What to do with a hyperparameter that nothing uses."""
        low, high = self.space.hyperparameters[name].bounds
        for layer, module in self.model.named_modules():
            if isinstance(module, _DropoutNd) and 0 <= low < high <= 1:
                kind = "Dropout" if isinstance(module, nn.Dropout | nn.AlphaDropout) else "ChannelDropout"
                return (
                    f"the model has {type(module).__name__} '{layer}', which reads none: replace it by "
                    f"rd.{kind}('{name}')"
                )
        return "give it to a layer of the model, to `augment` or to `penalty`"

    @property
    def pair(self) -> Callable[[Any], tuple[Any, Any]] | None:
        """Function that takes inputs and targets from a batch; None if batches are pairs.

        Raises:
            ValueError: from a call, if a batch does not have the key, or the function does not return a pair.
        """
        if self.batch is None:
            return None
        return _Key(self.batch) if isinstance(self.batch, str) else _Checked(self.batch)

    @property
    def regularizers(self) -> list[Regularizer]:
        """The layers of the model that read hyperparameters."""
        return [m for m in self.model.modules() if isinstance(m, Regularizer)]

    @property
    def samplers(self) -> list[Any]:
        """The layers of the model and the augmentations that read hyperparameters and have a random effect."""
        layers = [layer for layer in self.regularizers if not isinstance(layer, ActivationPenalty)]
        return [*layers, *self.augmentations]


def _size(data: Any) -> str:
    """The number of examples of a split as text."""
    if isinstance(data, Segments):
        return f"{len(data.tokens):,} tokens"
    data = getattr(data, "dataset", data)  # of a DataLoader
    if isinstance(data, tuple | list) and (found := next(iter(tensors(data)), None)) is not None:
        return f"{len(found):,}"
    try:
        return f"{len(data):,}"
    except TypeError:  # a stream
        return "an unknown number of"


@dataclass(frozen=True)
class _Key:
    """Inputs are all entries of a batch but one; the target is the whole batch."""

    key: str

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        if not isinstance(batch, Mapping) or self.key not in batch:
            raise ValueError(f"`batch` must be a key of each batch, got {self.key!r} for {described(batch)}")
        return {name: value for name, value in batch.items() if name != self.key}, batch


@dataclass(frozen=True)
class _Checked:
    """The user's function, whose result is a pair."""

    function: Callable[[Any], Any]

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        found = self.function(batch)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise ValueError(f"`batch` must return a pair (x, y), got {described(found)}")
        return found[0], found[1]


def _require_plain(model: nn.Module) -> None:
    """Raise TypeError if the model, or a part of it, is compiled or spread over devices: hooks do not act inside.

    Raise ValueError if it has a parameter without a shape.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(
                f"`model` must have parameters with shapes, got '{name}' without one; call the model once with a batch"
            )
    for name, module in model.named_modules():
        kind = type(module)
        if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
            what, remedy = (
                "compiled",
                "give the model before `torch.compile`; the option `graph` makes its steps faster",
            )
        elif isinstance(module, torch.jit.ScriptModule):
            what, remedy = "scripted or traced", "give the model before `torch.jit`"
        elif any(base.__module__.startswith(_PARALLEL) for base in kind.__mro__):
            what, remedy = "spread over devices", "give the model inside it, `model.module`: a run trains on one device"
        else:
            continue
        where = f" '{name}'" if name else ""
        raise TypeError(
            f"`model` must not be {what}, because the response acts through hooks of its layers, got "
            f"{kind.__name__}{where}; {remedy}"
        )


def _several(given: Any, what: str) -> tuple[Any, ...]:
    several = tuple(given) if isinstance(given, Sequence) else (given,)
    for one in several:
        if not callable(one) or not hasattr(one, "names"):
            raise TypeError(f"`{what}` must be callable and have `names`, such as `rd.L2('weight_decay')`, got {one!r}")
    return several
