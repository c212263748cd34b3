"""How a regulariser gets the values of its hyperparameters.

All regularisers of a run share one `PassValues`. Before a pass, the method puts the values of that pass into it:
(B,) tensors where each example has its own, () tensors where all share λ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ray_deltastn.response import Weights
from ray_deltastn.space import HyperSpace


class PassValues:
    """The hyperparameters' values in the pass under way, and the run's source of randomness.

    Args:
        space: the space the values belong to.
        generator: random generator on the training device; None for PyTorch's default one.
    """

    def __init__(self, space: HyperSpace, generator: torch.Generator | None = None) -> None:
        self.space = space
        self.generator = generator
        self.values: Mapping[str, Tensor] = {}

    def value(self, name: str, like: Tensor) -> Tensor:
        """Value of one hyperparameter, shaped (B or 1, 1, …) to act on `like` (B, …), in its type or at least float32.

        Raises:
            RuntimeError: outside a pass, when no values are set.
            ValueError: if the values are per example and `like` has another number of rows.
        """
        if name not in self.values:
            raise RuntimeError(f"`{name}` has a value only while a method runs the model; use `model.eval()` outside")
        value = self.values[name].to(_at_least_single(like.dtype))
        if value.dim() and value.shape[0] != like.shape[0]:
            raise ValueError(
                f"`x.shape[0]` must be the batch size for '{name}' per example, got {like.shape[0]} for a batch of "
                f"{value.shape[0]}"
            )
        return value.view(-1, *(1,) * (like.dim() - 1))

    def rand(self, *shape: int, like: Tensor) -> Tensor:
        """Uniform random numbers on the device of `like`, in its type or, if that is coarser, in float32."""
        return torch.rand(shape, generator=self.generator, device=like.device, dtype=_at_least_single(like.dtype))


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    # bfloat16 has 8 bits: a dropout rate of 0.001 would drop three times as much.
    return torch.promote_types(dtype, torch.float32)


@runtime_checkable
class Augmentation(Protocol):
    """Changes a batch of inputs on the training device, with one strength per example."""

    names: tuple[str, ...]

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Augmented inputs of the same shape."""
        ...


@runtime_checkable
class Penalty(Protocol):
    """A term of the objective in the weights, as `weights` has them, and the hyperparameters."""

    names: tuple[str, ...]

    def __call__(self, values: Mapping[str, Tensor], weights: Weights) -> Tensor:
        """Penalty, (B,) with one value per example or a scalar."""
        ...


class Regularizer(nn.Module):
    """A layer without parameters that acts according to hyperparameters, in training mode only.

    Args:
        names: the hyperparameters it reads.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"`name` must be the name of a hyperparameter, got {name!r}")
        self.names: tuple[str, ...] = names
        self._pass_values: PassValues | None = None

    def bind(self, pass_values: PassValues | None) -> None:
        """Read values from these pass values from now on; None for none."""
        self._pass_values = pass_values

    @property
    def pass_values(self) -> PassValues:
        """The pass values of the run.

        Raises:
            RuntimeError: if the model is used in training mode outside a run.
        """
        if self._pass_values is None:
            raise RuntimeError(
                f"`{type(self).__name__}({', '.join(self.names)})` has values only inside a `SelfTuner` or a trial; "
                "use `model.eval()` outside"
            )
        return self._pass_values

    def __getstate__(self) -> dict[str, Any]:
        # A copied or saved model is an ordinary one: it does not drag the run along.
        return {**self.__dict__, "_pass_values": None}

    def extra_repr(self) -> str:
        """Names of the hyperparameters."""
        return ", ".join(self.names)
