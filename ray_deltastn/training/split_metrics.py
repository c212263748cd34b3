"""Metrics that are no mean over examples: F1 needs a whole split, and perplexity the mean loss of a split."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ray_deltastn.methods import Workers
from ray_deltastn.response.trees import mapped, tensors


class OverSplit:
    """A metric for the whole of a split, see `over_split`."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        if not callable(function):
            raise TypeError(f"`over_split` must get a function, got {function!r}")
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, output: Any, target: Any) -> Tensor:
        """The metric, (), of outputs and targets.

        Raises:
            ValueError: if it is not one number.
        """
        found = torch.as_tensor(self.function(output, target), dtype=torch.float64)
        if found.numel() != 1:
            name = getattr(self.function, "__name__", "metric")
            raise ValueError(f"`{name}` over a split must return one number, got shape {tuple(found.shape)}")
        return found.reshape(())

    def try_out(self, name: str, output: Any, target: Any) -> None:
        """Call the metric for a few examples, which may be too few for it.

        Raises:
            ValueError: if it returns more than one number.
        """
        few = Collected()
        few.add(output, target)
        try:
            found = torch.as_tensor(self.function(*few.joined()))
        except (ValueError, ArithmeticError):  # such as the area under a curve for examples of one class
            return
        if found.numel() != 1:
            raise ValueError(f"`metrics[{name!r}]` over a split must return one number, got shape {tuple(found.shape)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return OverSplit, (self.function,)


def over_split(metric: Callable[[Any, Any], Any]) -> OverSplit:
    """Mark a metric of a task as one over a whole split: it is called once, with all outputs and targets.

    Other metrics are averaged over the examples of a split. That is right for an accuracy, but the mean of the F1
    scores of minibatches is not the F1 score of the split. The outputs and targets of the split are kept on the CPU,
    and joined along their first axis, leaf by leaf if they are nested. So the outputs for n examples of c classes take
    4·n·c bytes. If that is too much, let the model return less, for example no hidden states.

    Args:
        metric: `metric(output, target)`, which returns one number.

    Returns:
        The metric, for `Task(metrics={"f1": …})`; it can also be used as a decorator.

    Raises:
        TypeError: if `metric` is not callable. A run raises ValueError if the metric does not return one number, or the
            outputs of two minibatches have different shapes behind the first axis.

    Examples:
        >>> from sklearn.metrics import f1_score
        >>> @rd.over_split
        ... def f1(output, target):
        ...     return f1_score(target, output.argmax(1), average="macro")
        >>> float(f1(torch.eye(3), torch.tensor([0, 1, 1]))) == f1_score([0, 1, 1], [0, 1, 2], average="macro")
        True
    """
    return OverSplit(metric)


class OfLoss:
    """A metric that is a function of the mean loss of a split, so that no outputs are kept for it."""

    def __call__(self, loss: float) -> float:
        """The metric of a mean loss in nats."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class Perplexity(OfLoss):
    """The perplexity of a language model on a split, exp(L), for `Task(metrics={"perplexity": rd.Perplexity()})`.

    L is the reported loss of the split, which must be the mean negative log-likelihood of a token in nats, such as
    PyTorch's cross-entropy. On `rd.Segments` it is the mean over all tokens of the split. This is not the mean of the
    perplexities of minibatches. No outputs are kept.

    Examples:
        >>> round(rd.Perplexity()(math.log(50)), 6)
        50.0
    """

    def __call__(self, loss: float) -> float:
        """exp(loss)."""
        try:
            return math.exp(loss)
        except OverflowError:
            return math.inf


class BitsPerCharacter(OfLoss):
    """Bits per character of a language model on a split, L/ln 2, for `Task(metrics={"bits": rd.BitsPerCharacter()})`.

    L is the reported loss of the split, see `Perplexity`; its tokens must be characters.

    Examples:
        >>> rd.BitsPerCharacter()(math.log(8))
        3.0
    """

    def __call__(self, loss: float) -> float:
        """loss/ln 2."""
        return loss / math.log(2)


class Collected:
    """The outputs and targets of a split, collected on the CPU."""

    def __init__(self) -> None:
        self._outputs: list[Any] = []
        self._targets: list[Any] = []

    def add(self, output: Any, target: Any) -> None:
        """Keep those of a minibatch."""
        for kept, tree in ((self._outputs, output), (self._targets, target)):
            kept.append(mapped(lambda t: t.detach().cpu(), tree))

    def with_others(self, workers: Workers) -> Collected:
        """Those of all workers, in the order of the workers."""
        found = Collected()
        for outputs, targets in workers.gathered((self._outputs, self._targets)):
            found._outputs += outputs
            found._targets += targets
        return found

    def joined(self, continues: bool = False) -> tuple[Any, Any]:
        """Those of the whole split.

        Args:
            continues: see `Stream.continues`. If a minibatch is shorter than the others, all are joined along the axis
                in which it is shorter.

        Raises:
            ValueError: if those of two minibatches do not fit together.
        """
        return _concatenated(self._outputs, "outputs", continues), _concatenated(self._targets, "targets", continues)


def _concatenated(trees: Sequence[Any], what: str, continues: bool) -> Any:
    """Trees joined along one axis of their leaves, the first; leaves without axes are those of the first tree."""
    leaves = [tensors(tree) for tree in trees]
    axes = [0] * len(leaves[0])
    if continues:
        axes = [next(iter(_different(of)), 0) for of in zip(*leaves, strict=True)]
    shapes = [[(*t.shape[:axis], *t.shape[axis + 1 :]) for t, axis in zip(own, axes, strict=True)] for own in leaves]
    odd = next((own for own in shapes if own != shapes[0]), None)
    if odd is not None:
        raise ValueError(
            f"{what} of all minibatches must have the same shapes behind the first axis for a metric over a split, got "
            f"{shapes[0]} and {odd}"
        )
    columns = iter(zip(zip(*leaves, strict=True), axes, strict=True))

    def whole(t: Tensor) -> Tensor:
        parts, axis = next(columns)
        return torch.cat(parts, axis) if t.dim() else t

    return mapped(whole, trees[0])


def _different(parts: Sequence[Tensor]) -> list[int]:
    """The axes in which some tensors have another length than the first."""
    return [axis for axis in range(parts[0].dim()) if any(t.shape[axis] != parts[0].shape[axis] for t in parts)]
