"""How a regulariser gets the values of its hyperparameters.

All regularisers of a run share one `PassValues`. Before each pass the method stores the values of the pass in it:
tensors (B,) if each example has its own value, tensors () if all examples share s(λ).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ray_deltastn.response import Weights
from ray_deltastn.response.layout import FRONT, Layout
from ray_deltastn.space import HyperSpace


class PassValues:
    """The values of the hyperparameters in the current pass, and the random generator of the run.

    Args:
        space: the space of the hyperparameters.
        generator: random generator on the training device; None means PyTorch's default generator.
    """

    def __init__(self, space: HyperSpace, generator: torch.Generator | None = None) -> None:
        self.space = space
        self.generator = generator
        self.values = {}
        #: Activations that are penalised, each with the function that gives its penalty; None if no pass asks for them.
        self.activations: list[tuple[Callable[[Tensor], Tensor], Tensor]] | None = None

    @property
    def values(self) -> Mapping[str, Tensor]:
        """Name → value in the current pass, (B,) or (); empty if no pass is running."""
        return self._values

    @values.setter
    def values(self, values: Mapping[str, Tensor]) -> None:
        self._values = values
        self._drawn: dict[object, Tensor] = {}

    def once(self, key: object, draw: Callable[[], Tensor]) -> Tensor:
        """What `draw` returns, which is called once in a pass for each `key`."""
        if key not in self._drawn:
            self._drawn[key] = draw()
        return self._drawn[key]

    def value(self, name: str, like: Tensor, layout: Layout = FRONT) -> Tensor:
        """Value of one hyperparameter, (B or 1, 1, …), which broadcasts over `like` (B, …).

        Its type is the type of `like`, but at least float32.

        Args:
            name: the hyperparameter.
            like: the tensor on which the value acts.
            layout: where `like` has the batch.

        Raises:
            RuntimeError: if no pass is running, so that there is no value.
            ValueError: if there is one value per example, and `like` has another number of rows.
        """
        if name not in self.values:
            raise RuntimeError(
                f"`{name}` has a value only while a method runs the model; call `model.eval()` before any other use"
            )
        value = self.values[name].to(_at_least_single(like.dtype))
        if value.dim() and self.space.hyperparameters[name].per == "batch":
            value = value[:1]
        value = layout.spread(value.reshape(-1, 1), like.shape[layout.axis])
        if value.shape[0] not in (1, like.shape[layout.axis]):
            raise ValueError(
                f"`x.shape[{layout.axis}]` must be the batch size for '{name}' per example, got "
                f"{like.shape[layout.axis]} for a batch of {value.shape[0]}"
            )
        return value.view(*(1,) * layout.axis, -1, *(1,) * (like.dim() - 1 - layout.axis))

    def rand(self, *shape: int, like: Tensor) -> Tensor:
        """Uniform random numbers in [0, 1) on the device of `like`, in its type but at least in float32."""
        return torch.rand(shape, generator=self.generator, device=like.device, dtype=_at_least_single(like.dtype))


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    # bfloat16 has 8 bits of precision, so a dropout rate of 0.001 would drop three times as many elements.
    return torch.promote_types(dtype, torch.float32)


@runtime_checkable
class Augmentation(Protocol):
    """A random change of a batch of inputs on the training device, with one strength per example."""

    names: tuple[str, ...]

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Augmented inputs of the same shape."""
        ...


@runtime_checkable
class Penalty(Protocol):
    """A term of the objective that depends on the weights and on the hyperparameters."""

    names: tuple[str, ...]

    def __call__(self, values: Mapping[str, Tensor], weights: Weights) -> Tensor:
        """The penalty: one value per example (B,), or a scalar.

        Args:
            values: name → value of the hyperparameter, (B,) or ().
            weights: the weights w₀ + Θδ.
        """
        ...


class Regularizer(nn.Module):
    """A layer without parameters that reads hyperparameters. It has an effect in training mode only.

    Args:
        names: names of the hyperparameters that it reads.

    Raises:
        TypeError: if a name is not a string.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"`name` must be the name of a hyperparameter, got {name!r}")
        self.names: tuple[str, ...] = names
        self._pass_values: PassValues | None = None
        #: Where the inputs have the batch; a run looks at it before its first step.
        self.layout = FRONT

    def bind(self, pass_values: PassValues | None) -> None:
        """Set the pass values from which the layer reads. None removes them."""
        self._pass_values = pass_values

    @property
    def pass_values(self) -> PassValues:
        """The pass values of the run.

        Raises:
            RuntimeError: if the model is in training mode and no run uses it.
        """
        if self._pass_values is None:
            raise RuntimeError(
                f"`{type(self).__name__}({', '.join(self.names)})` has values only inside a `SelfTuner` or a trial; "
                "call `model.eval()` before any other use"
            )
        return self._pass_values

    def __getstate__(self) -> dict[str, Any]:
        # A copied or saved model does not contain the run.
        return {**self.__dict__, "_pass_values": None}

    def extra_repr(self) -> str:
        """Names of the hyperparameters."""
        return ", ".join(self.names)
