"""How parameters that are replaced, and modules with copies of their weights, take part in a response.

Both may fail in a given network: a parameter need not broadcast over the batch, and a module need not be computable
example by example. So each way is tried on two examples and compared with the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ray_deltastn.response.derivatives import Oracle, Predict, oracle, ours, wrong
from ray_deltastn.response.layout import FRONT, Layout
from ray_deltastn.response.passes.leaf import refuse
from ray_deltastn.response.replaced import Lead
from ray_deltastn.response.response import Response
from ray_deltastn.response.slots import Slot

#: Modules with at least so many weights are tried without copies.
LARGE = 1024

Training = Callable[[], AbstractContextManager[None]]

NO_BATCH = "its layer's outputs do not have the batch on one axis, and examples have different hyperparameters"
_NO_COPY = (
    'its module cannot be computed with a copy for each example; with `per="batch"` for all hyperparameters it responds'
)
_ALONE = (
    "it does not broadcast over the batch, so that each example cannot have its own; "
    'with `per="batch"` for all hyperparameters it responds'
)


@dataclass(frozen=True)
class Unsettled:
    """What the first passes of a network have left open.

    Attributes:
        tables: embeddings whose outputs have no batch, and the layouts that give them one.
        uncalled: parameters of layers that are never called, and the reason if they are not used otherwise.
    """

    tables: dict[nn.Module, Layout]
    uncalled: dict[Slot, str]

    def of_tables(self, response: Response) -> list[Slot]:
        """The parameters of the tables."""
        return [slot for layer in self.tables for slot in response.uses.of(layer)]


@dataclass(frozen=True)
class _Group:
    """Parameters that are tried together: one that is replaced, or those of one module."""

    slots: Sequence[Slot]
    leads: Sequence[Lead]
    module: nn.Module | None = None


def settle(
    predict: Predict,
    two: Any,
    response: Response,
    linearised: bool,
    per_example: bool,
    found: Unsettled,
    training: Training | None = None,
) -> None:
    """Choose how each such parameter takes part, and drop those that cannot.

    Args:
        predict: the network in evaluation mode.
        two: inputs of two examples.
        response: the response.
        linearised: whether passes are linearised.
        per_example: whether each example has its own displacement.
        found: what the first passes have left open.
        training: context in which the network is in training mode; it must run there too.
    """
    parts = {layer: response.uses.suspend(layer) for layer in found.tables}
    for layer, layout in found.tables.items():
        response.uses.resume(layer, parts[layer], layout)
        expected = oracle(predict, two, response, per_example)
        own = response.uses.of(layer)
        why = _fault(predict, training, two, response, expected, linearised, per_example, own)
        for slot in own if why else ():
            response.drop(slot, NO_BATCH)
    if found.uncalled:
        expected = oracle(predict, two, response, per_example)
        for slot in found.uncalled.keys() & set(expected.unused):
            response.drop(slot, found.uncalled[slot])
        for slot, why in found.uncalled.items():
            if slot not in response.slots or response.uses.moves_in_functions(slot):  # with another one of its layer
                continue
            by_function = per_example and find_functions(predict, two, response, linearised, expected, slot)
            if not (by_function or response.uses.replace(slot)):
                response.drop(slot, why)
    if per_example:
        for layer in response.uses.leaves():
            why = refuse(layer)
            for slot in response.uses.of(layer) if why else ():
                response.drop(slot, str(why))
    groups = _groups(response)
    if not groups:
        return
    expected = oracle(predict, two, response, per_example)
    fault = partial(_fault, predict, training, two, response, expected, linearised, per_example)
    for slot in {slot for group in groups for slot in group.slots} & set(expected.unused):
        response.drop(slot, "it is not used in evaluation mode")
    groups = _groups(response)
    if per_example and linearised:
        for group in groups:
            if group.module is not None and sum(slot.parameter.numel() for slot in group.slots) >= LARGE:
                _find_row_axis(response, group.module, partial(fault, group.slots))
    every = [slot for group in groups for slot in group.slots]
    if not groups or fault(every) is None:
        return
    for group in groups:
        why = _first_that_works(response, group, fault, per_example)
        if why is None:
            continue
        if group.module is not None and per_example:  # perhaps its weights broadcast over the batch
            response.uses.replace_in(group.module)
            for slot in group.slots:
                alone = _Group([slot], response.uses.replaced.leads(slot.parameter))
                if _first_that_works(response, alone, fault, per_example) is not None:
                    response.drop(slot, _NO_COPY)
        else:
            for slot in group.slots:
                response.drop(slot, _ALONE if per_example else why)


def _first_that_works(
    response: Response, group: _Group, fault: Callable[[Sequence[Slot]], str | None], per_example: bool
) -> str | None:
    """Choose the first way that works; if none does, why the last does not."""
    why = None
    for lead in group.leads if per_example else group.leads[:1]:
        response.uses.replaced.set_lead(group.slots[0].name, lead)
        why = fault(group.slots)
        if why is None:
            break
    return why


def _find_row_axis(response: Response, module: nn.Module, fault: Callable[[], str | None]) -> None:
    """Find the axis of the module's output with one index per row of its weights: the last, or that of channels."""
    for axis in (-1, 1, None):
        response.uses.row_axes[module] = axis
        if axis is None or fault() is None:
            return


def find_functions(
    predict: Predict, two: Any, response: Response, linearised: bool, expected: Oracle, slot: Slot
) -> bool:
    """Let a parameter whose response is wrong in its layers move in functions, if that is right.

    Returns:
        Whether it is.
    """
    for layout in (FRONT, Layout(interleaved=False)):
        found = response.uses.in_functions(slot, layout)
        if found is None:
            return False
        slots, undo = found
        if _fault(predict, None, two, response, expected, linearised, True, slots) is None:
            return True
        undo()
    return False


def _groups(response: Response) -> list[_Group]:
    uses = response.uses
    names = {name for name, _, _ in uses.replaced.uses()}
    alone = [_Group([slot], uses.replaced.leads(slot.parameter)) for slot in response.slots if slot.name in names]
    return alone + [_Group(slots, [0], layer) for layer in uses.leaves() if (slots := uses.of(layer))]


class _Cuts(TorchFunctionMode):
    """Records whether a parameter with one value per example is cut on axis 0, as in `positions[:length]`.

    That axis is then the batch. A cut at more than two does not show on two examples.
    """

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.seen = False
        self._uses = response.uses.replaced.uses()
        self._axes = {slot.name: slot.parameter.dim() for slot in response.slots}

    def _is_moved(self, tensor: Tensor) -> bool:
        """Whether this is a parameter with the batch before its own axes."""
        names = [name for name, holder, role in self._uses if tensor is holder._parameters.get(role)]
        return any(tensor.dim() > self._axes.get(name, tensor.dim()) for name in names)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            first = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
            if isinstance(first, slice) and first != slice(None):
                self.seen = self.seen or self._is_moved(args[0])
        return func(*args, **(kwargs or {}))


def _fault(
    predict: Predict,
    training: Training | None,
    two: Any,
    response: Response,
    expected: Oracle,
    linearised: bool,
    per_example: bool,
    only: Collection[Slot],
) -> str | None:
    """Why these parameters cannot respond, or None."""
    along = {slot: expected.along[slot] for slot in response.slots}
    for through_tangent in (False, True) if linearised else (False,):
        try:
            with _Cuts(response) as cuts:
                found = ours(predict, two, response, expected.u, per_example, through_tangent, only)
            if cuts.seen:
                return _ALONE
            if training is not None:
                with training():
                    ours(predict, two, response, expected.u, per_example, through_tangent, only)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
            return f"it cannot be displaced: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        if set(wrong(found, along, response)) & set(only):
            return (
                "it is also used elsewhere, or its tangent is lost" if through_tangent else "it is also used elsewhere"
            )
    return None
