"""A look at the response before the first step: every part of it must be the derivative that it claims to be.

For s = ⟨u, f(x)⟩ with a random u, two derivatives must be equal for each example and each row r of a parameter:

| symbol      | how                                                                                               |
|-------------|---------------------------------------------------------------------------------------------------|
| ∂s/∂(Uδ)_r  | backward through the displaced network, or through the tangent of the linearised network          |
| ⟨∂s/∂W_r, W_resp,r⟩ | backward through the network without hooks: the oracle                                    |

They differ if a layer's output does not have the batch where the response looks for it, if a weight is also used
outside its layer, if the model changes the order of its examples, or if an operation loses its tangent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ray_deltastn.response.derivatives import Predict, oracle, ours, wrong
from ray_deltastn.response.kinds.base import LayerKind, on_channels, on_normalized_shape
from ray_deltastn.response.kinds.embedding import EMBEDDING
from ray_deltastn.response.layout import FRONT, Layout, layouts
from ray_deltastn.response.linearise import rules, rules_for_attention
from ray_deltastn.response.passes import ModulePass
from ray_deltastn.response.response import Response
from ray_deltastn.response.settle import NO_BATCH, Training, Unsettled, find_functions, settle
from ray_deltastn.response.slots import Slot
from ray_deltastn.response.trees import joined, mapped, taken, tensors

#: Batch sizes of the look; a layer's output has the batch where its shape follows both.
FEW = (2, 3)
#: Examples for the look: two groups, because the rows of a layer may depend on the data.
EXAMPLES = 2 * max(FEW)
#: A weight is moved by this share of its root mean square, and at least by this number.
SHARE, LEAST = 0.5, 0.05
#: More axes than a tensor has.
MANY = 1000


class LostTangentError(TypeError):
    """An operation of the network has no forward-mode rule, or one that is wrong at these inputs."""


def look(
    predict: Predict,
    x: Any,
    response: Response,
    linearised: bool,
    readers: Mapping[str, Any] | None,
    training: Training | None = None,
) -> None:
    """Drop the parameters whose response would be wrong, and find where each layer has the batch.

    The network is looked at twice: as it is, and with weights that are moved by random numbers, because a part behind a
    weight of zero shows nothing.

    Args:
        predict: the network in evaluation mode, with the same random numbers in each call.
        x: inputs of `EXAMPLES` examples.
        response: its response.
        linearised: whether passes are linearised (3.13).
        readers: layers that read a value per example and have an attribute `layout`, by name; None if all examples of
            a batch have the same values and the same displacement.
        training: context in which the network is in training mode, for readers that are not called in evaluation mode.

    Raises:
        LostTangentError: if the linearised pass loses the tangent of a parameter, or makes it infinite or NaN.
        ValueError: if no parameter is left, or if a reader's input has no batch axis.
    """
    with rules_for_attention(), rules(response):
        if isinstance(response.U, FakeTensor):  # without numbers there is nothing to move or to compare
            found = _find(predict, x, response, readers, training)
            for slot, why in {**dict.fromkeys(found.of_tables(response), NO_BATCH), **found.uncalled}.items():
                response.drop(slot, why)
            return
        with _moved(response.model):
            found = _find(predict, x, response, readers, training)
            settle(predict, _chosen(x, [1, 0]), response, linearised, readers is not None, found, training)
            for pair in ([1, 0], [2, 0]):
                _compare(predict, _chosen(x, pair), response, linearised, readers is not None)
        _compare(predict, _chosen(x, [0, 1]), response, linearised, readers is not None)


@contextmanager
def _moved(model: nn.Module) -> Iterator[None]:
    """Move all parameters by random numbers within the context; afterwards they are as before, to the bit."""
    generator = torch.Generator().manual_seed(0)
    kept = [(p, p.detach().clone()) for p in model.parameters() if p.is_floating_point()]
    with torch.no_grad():
        for p, _ in kept:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p)
            p.add_(noise * (SHARE * p.square().mean().sqrt() + LEAST))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, before in kept:
                p.copy_(before)


def _chosen(x: Any, examples: list[int]) -> Any:
    return mapped(lambda t: t[torch.tensor(examples, device=t.device)] if t.dim() else t, x)


def _find(
    predict: Predict, x: Any, response: Response, readers: Mapping[str, Any] | None, training: Training | None
) -> Unsettled:
    """Find all layouts, and what must be tried."""
    calls = _calls(predict, x, [*response.uses.layers.values(), *(readers or {}).values()])
    unsettled = Unsettled({}, _uncalled(response, calls))
    if readers is None:
        return unsettled
    unsettled.tables.update(_find_layouts(response, calls))
    uncalled = [layer for layer in readers.values() if not calls[layer]]
    if uncalled and training is not None:
        with training():
            calls |= _calls(predict, x, uncalled)
    _find_readers(readers, calls)
    return unsettled


def _compare(predict: Predict, two: Any, response: Response, linearised: bool, each: bool) -> None:
    """Drop the parts that differ from the oracle on two examples."""
    expected = oracle(predict, two, response, each)
    if not all(bool(torch.isfinite(part).all()) for part in expected.along.values()):
        return
    for slot in wrong(ours(predict, two, response, expected.u, each, linearised=False), expected.along, response):
        # One displacement for all examples is exact for any use of a parameter that is replaced.
        if slot not in response.slots:
            continue
        mended = (
            find_functions(predict, two, response, linearised, expected, slot) if each else response.uses.replace(slot)
        )
        if not mended:
            response.drop(slot, _reason(response, slot, each))
    if linearised:
        found = ours(predict, two, response, expected.u, each, linearised=True)
        lost = wrong(found, expected.along, response)
        if lost:
            names = ", ".join(f"'{slot.name}'" for slot in lost[:3]) + (", …" if len(lost) > 3 else "")
            if not all(bool(found[slot].isfinite().all()) for slot in lost):
                raise LostTangentError(
                    f"tangents must be finite where gradients are, got others for {names}, such as at the norm of a "
                    "vector of zeros"
                )
            raise LostTangentError(
                f"every operation must have a forward-mode rule, got one that loses the tangents of {names}, such as a "
                "custom operator"
            )


@dataclass(frozen=True)
class _Call:
    """A call of a layer: the number of examples, the shape of the output, and what changes with the last example.

    `changed` has, for each axis, whether an entry of the axis changes. An axis whose length depends on the data, such
    as the steps of padded sequences, has the length 0 in `shape`. If the number of axes depends on them, `shape` is ().
    """

    batch: int
    shape: tuple[int, ...]
    changed: tuple[tuple[bool, ...], ...] = ()


def _calls(predict: Predict, x: Any, layers: Sequence[nn.Module]) -> dict[nn.Module, list[_Call]]:
    """The calls of each layer with two and with three examples, of each group."""
    found: dict[nn.Module, list[_Call]] = {layer: [] for layer in layers}
    readable = not any(isinstance(t, FakeTensor) for t in tensors(x))
    groups = [taken(x, slice(start, start + max(FEW))) for start in range(0, EXAMPLES, max(FEW))]
    with torch.no_grad():
        for group, batch in product(groups, FEW):
            first = _outputs(predict, taken(group, slice(batch)), layers)
            # What changes with the last example belongs to it.
            other = _outputs(predict, joined(taken(group, slice(batch - 1)), taken(group, slice(1))), layers)
            for layer in layers:
                same = [a.dim() for a in first[layer]] == [b.dim() for b in other[layer]]
                for one, two in zip(first[layer], other[layer], strict=False) if same else ():
                    found[layer].append(_call(batch, one, two, readable))
                if not same:
                    found[layer].append(_Call(batch, ()))
    return found


def _call(batch: int, one: Tensor, two: Tensor, readable: bool) -> _Call:
    """A call from its outputs before and after the last example changes."""
    shape = tuple(a if a == b else 0 for a, b in zip(one.shape, two.shape, strict=True))
    common = tuple(slice(min(a, b)) for a, b in zip(one.shape, two.shape, strict=True))
    return _Call(batch, shape, _changed(one[common], two[common]) if readable else ())


def _outputs(predict: Predict, x: Any, layers: Sequence[nn.Module]) -> dict[nn.Module, list[Tensor]]:
    found: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    handles = [layer.register_forward_hook(lambda m, args, out: found[m].append(_first(out))) for layer in layers]
    try:
        predict(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _first(output: Any) -> Tensor:
    """The tensor of a layer's output that has the batch; a packed sequence is padded."""
    while not isinstance(output, Tensor | PackedSequence):
        output = next(iter(output))
    return pad_packed_sequence(output, batch_first=True)[0] if isinstance(output, PackedSequence) else output


def _changed(one: Tensor, two: Tensor) -> tuple[tuple[bool, ...], ...]:
    differs = one != two
    if one.is_floating_point():
        # A product of matrices with another number of rows rounds in another way.
        near = torch.finfo(one.dtype).eps ** 0.5
        differs &= ~torch.isclose(one, two, rtol=near, atol=near * float(one.abs().max()) if one.numel() else 0.0)
    return tuple(tuple(differs.movedim(axis, 0).flatten(1).any(1).tolist()) for axis in range(one.dim()))


def _uncalled(response: Response, calls: Mapping[nn.Module, list[_Call]]) -> dict[Slot, str]:
    """The parameters of layers that are never called, and the reason if they are not used otherwise."""
    names = {layer: name for name, layer in response.uses.layers.items()}
    return {
        slot: f"layer '{names[users[0]]}' is never called in evaluation mode"
        for slot in response.slots
        if (users := response.uses.users(slot)) and not any(calls[layer] for layer in users)
    }


def _find_layouts(response: Response, calls: Mapping[nn.Module, list[_Call]]) -> dict[nn.Module, Layout]:
    """Find where the outputs have the batch; embeddings whose outputs have none are returned, others are dropped."""
    found = {
        layer: _layout(calls[layer], _last(layer, response.uses.kind(layer)))
        for layer in response.uses.layers.values()
        if calls[layer]
    }
    tables: dict[nn.Module, Layout] = {}
    for layer, layout in found.items():
        if layout is not None:
            response.uses.set_layout(layer, layout)
        elif response.uses.kind(layer) is EMBEDDING and not any(any(map(any, call.changed)) for call in calls[layer]):
            first = all(len(call.shape) > 2 and call.shape[0] == 1 for call in calls[layer])
            tables[layer] = Layout(shared="first" if first else "new")
    for slot in list(response.slots):
        if any(found.get(layer, FRONT) is None and layer not in tables for layer in response.uses.users(slot)):
            response.drop(slot, NO_BATCH)
    return tables


def _find_readers(readers: Mapping[str, Any], calls: Mapping[nn.Module, list[_Call]]) -> None:
    for name, layer in readers.items():
        layout = _layout(calls[layer], 0) if calls[layer] else FRONT
        if layout is None:
            shapes = ", ".join(sorted({str(call.shape) for call in calls[layer] if call.batch == FEW[0]}))
            raise ValueError(
                f"the inputs of layer '{name}' must have the batch on one axis, in the order of the examples, got "
                f'{shapes} for a batch of {FEW[0]}; give its hyperparameter `per="batch"`'
            )
        layer.layout = layout


def _layout(calls: Sequence[_Call], last: int) -> Layout | None:
    """The layout that fits all calls of a layer, whose last axes hold channels or features."""
    few, more = ([call for call in calls if call.batch == batch] for batch in FEW)
    if len(few) != len(more):
        return None
    for one in layouts([(call.batch, call.shape) for call in calls], last):
        # The rows must grow with the batch; a table of positions may have a multiple of both sizes.
        grows = all(a.shape[one.axis] * b.batch == b.shape[one.axis] * a.batch for a, b in zip(few, more, strict=True))
        if grows and all(_fits(call, one) for call in calls):
            return one
    return None


def _fits(call: _Call, layout: Layout) -> bool:
    """Whether only entries of the last example change with it, or all: a model may mix its examples."""
    if not call.changed:
        return True
    changed = call.changed[layout.axis]
    owners = layout.owners(call.batch, call.shape[layout.axis])
    return all(changed) or not any(one and owner != call.batch - 1 for one, owner in zip(changed, owners, strict=True))


def _last(layer: nn.Module, kind: LayerKind | ModulePass) -> int:
    """Number of axes at the end of an output that hold channels or features; all but the first for channels."""
    if isinstance(kind, ModulePass):
        return kind.features
    if kind.place is on_channels:
        return MANY
    return len(layer.normalized_shape) if kind.place is on_normalized_shape else 1  # type: ignore[arg-type]


def _reason(response: Response, slot: Slot, per_example: bool) -> str:
    names = {layer: name for name, layer in response.uses.layers.items()}
    where = " and ".join(f"'{names[layer]}'" for layer in response.uses.users(slot))
    mixes = ", or the model mixes its examples" if per_example else ""
    return f"it is also used outside layer {where}{mixes}"
