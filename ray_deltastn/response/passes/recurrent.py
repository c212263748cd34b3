"""Recurrent layers and cells: both their weights move per row of a gate, at every step.

| symbol        | code       | shape      | meaning                                                     |
|---------------|------------|------------|-------------------------------------------------------------|
| W_ih x + b_ih | `inputs`   | (T, B, gH) | inputs of the g gates of H units, for all T steps at once   |
| W_hh h + b_hh |            | (B, gH)    | the part of the hidden state, step by step                  |

PyTorch's fused kernels have no forward-mode rule. So a displaced pass makes one step after another; a pass without
displacement uses the fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ray_deltastn.response.kinds.base import Rows
from ray_deltastn.response.layout import Layout
from ray_deltastn.response.passes.base import ModulePass, Moved

#: A step: gates' inputs (B, gH), the hidden part's map, and the state before → the state after. State: h, and c.
State = tuple[Tensor, ...]
Step = Callable[[Tensor, Callable[[Tensor], Tensor], State], State]

_OF_A_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _lstm(inputs: Tensor, hidden: Callable[[Tensor], Tensor], state: State) -> State:
    i, f, g, o = (inputs + hidden(state[0])).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(inputs: Tensor, hidden: Callable[[Tensor], Tensor], state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = inputs.chunk(3, -1), hidden(state[0]).chunk(3, -1)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return (n + z * (state[0] - n),)


def _rnn(inputs: Tensor, hidden: Callable[[Tensor], Tensor], state: State) -> State:
    return (torch.tanh(inputs + hidden(state[0])),)


def _relu_rnn(inputs: Tensor, hidden: Callable[[Tensor], Tensor], state: State) -> State:
    return (torch.relu(inputs + hidden(state[0])),)


def _step(module: Any) -> Step:
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return _lstm
    if isinstance(module, nn.GRU | nn.GRUCell):
        return _gru
    return _relu_rnn if module.nonlinearity == "relu" else _rnn


def sequence(module: Any, moved: Moved, input: Any, hx: Any = None) -> Any:
    """What `nn.LSTM`, `nn.GRU` and `nn.RNN` return, for a tensor or a packed sequence."""
    packed = input if isinstance(input, PackedSequence) else None
    if packed is not None:
        x, alive = _padded(packed)
        moved = moved.ordered(packed.sorted_indices, Layout(0, moved.layout.interleaved))
    else:
        x = input[:, None] if input.dim() == 2 else input.transpose(0, 1) if module.batch_first else input
        alive = None
    batched = packed is not None or input.dim() == 3
    moved = moved.ordered(None, _steps_of(moved.layout))
    state = _first_state(module, x, hx, batched, packed)
    ends: list[State] = []
    for layer in range(module.num_layers):
        outputs: list[Tensor] = []
        for direction in range(2 if module.bidirectional else 1):
            before = tuple(part[len(ends)] for part in state)
            out, end = _run(module, moved, x, before, layer, bool(direction), alive)
            outputs.append(out)
            ends.append(end)
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if module.dropout and layer + 1 < module.num_layers:
            x = F.dropout(x, module.dropout, module.training)
    last = tuple(torch.stack([end[i] for end in ends]) for i in range(len(state)))
    if packed is not None:
        back = packed.unsorted_indices
        last = last if back is None else tuple(part.index_select(1, back) for part in last)
        output: Any = PackedSequence(
            x[_steps_and_rows(packed)], packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
    else:
        last = last if batched else tuple(part[:, 0] for part in last)
        output = x[:, 0] if not batched else x.transpose(0, 1) if module.batch_first else x
    return output, last if len(last) == 2 else last[0]


def _run(
    module: Any, moved: Moved, x: Tensor, state: State, layer: int, reverse: bool, alive: Tensor | None
) -> tuple[Tensor, State]:
    """One layer in one direction: outputs (T, B, H) and the last state."""
    end = f"_l{layer}" + ("_reverse" if reverse else "")
    inputs = moved.linear(x, f"weight_ih{end}", f"bias_ih{end}")
    by_step = moved.ordered(None, Layout(0, moved.layout.interleaved)) if moved.layout.axis == 1 else moved
    step, project = _step(module), getattr(module, "proj_size", 0) > 0
    outputs: list[Tensor] = []
    order = range(len(x) - 1, -1, -1) if reverse else range(len(x))
    for t in order:
        after = step(inputs[t], lambda h: by_step.linear(h, f"weight_hh{end}", f"bias_hh{end}"), state)
        if project:
            after = (by_step.linear(after[0], f"weight_hr{end}", None), *after[1:])
        if alive is not None:  # a sequence that has ended keeps its state
            after = tuple(torch.where(alive[t], new, old) for new, old in zip(after, state, strict=True))
        state = after
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


def _steps_of(layout: Layout) -> Layout:
    """The layout of (T, B, …) for the layout of the module's output."""
    return Layout(1, layout.interleaved) if layout.axis in (0, 1) else layout


def _first_state(module: Any, x: Tensor, hx: Any, batched: bool, packed: PackedSequence | None) -> State:
    """The state before the first step, each part (layers · directions, B, H)."""
    parts = 2 if isinstance(module, nn.LSTM) else 1
    if hx is None:
        count = module.num_layers * (2 if module.bidirectional else 1)
        sizes = [getattr(module, "proj_size", 0) or module.hidden_size, module.hidden_size][:parts]
        return tuple(x.new_zeros(count, x.shape[1], size) for size in sizes)
    state = tuple(hx) if parts == 2 else (hx,)
    if packed is not None and packed.sorted_indices is not None:
        return tuple(part.index_select(1, packed.sorted_indices) for part in state)
    return state if batched else tuple(part[:, None] for part in state)


def _steps_and_rows(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """Step and sequence of each entry of a packed sequence."""
    sizes = packed.batch_sizes.tolist()
    device = packed.data.device
    steps = torch.cat([torch.full((size,), t) for t, size in enumerate(sizes)])
    return steps.to(device), torch.cat([torch.arange(size) for size in sizes]).to(device)


def _padded(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """Inputs (T, B, in), zero behind the end of a sequence, and whether a sequence has this step, (T, B, 1)."""
    steps, sequences = _steps_and_rows(packed)
    shape = (len(packed.batch_sizes), int(packed.batch_sizes[0]))
    index = torch.zeros(shape, dtype=torch.long, device=packed.data.device)
    index[steps, sequences] = torch.arange(len(steps), device=index.device)
    alive = torch.zeros(*shape, 1, dtype=torch.bool, device=index.device)
    alive[steps, sequences] = True
    return torch.where(alive, packed.data[index], packed.data.new_zeros(())), alive


def cell(module: Any, moved: Moved, input: Tensor, hx: Any = None) -> Any:
    """What `nn.LSTMCell`, `nn.GRUCell` and `nn.RNNCell` return."""
    parts = 2 if isinstance(module, nn.LSTMCell) else 1
    if hx is None:
        state: State = (input.new_zeros(*input.shape[:-1], module.hidden_size),) * parts
    else:
        state = tuple(hx) if parts == 2 else (hx,)
    inputs = moved.linear(input, "weight_ih", "bias_ih")
    after = _step(module)(inputs, lambda h: moved.linear(h, "weight_hh", "bias_hh"), state)
    return after if parts == 2 else after[0]


def parameters(module: Any) -> dict[str, Rows]:
    """All weights and biases, per row of a gate; a bias is one row per element.

    A parameter from which a parametrisation or a hook computes a weight has no rule.
    """
    own = module._parameters
    weights = getattr(module, "_flat_weights_names", _OF_A_CELL)
    found = {name: p for name in weights if (p := own.get(name)) is not None}
    return {name: "output" if p.dim() > 1 else "element" for name, p in found.items()}


def initialise(module: Any, name: str, direction: Tensor, generator: torch.Generator | None) -> None:
    """Fill W_resp with U(−1/√H, 1/√H), as PyTorch fills recurrent weights."""
    bound = float(module.hidden_size) ** -0.5
    direction.uniform_(-bound, bound, generator=generator)


SEQUENCE = ModulePass((nn.LSTM, nn.GRU, nn.RNN), parameters, sequence, initialise)
CELL = ModulePass((nn.LSTMCell, nn.GRUCell, nn.RNNCell), parameters, cell, initialise)
