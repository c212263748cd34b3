"""The network linearised in its weights: one forward pass carries the primal and the tangent.

| symbol                  | code      | meaning                                     |
|-------------------------|-----------|---------------------------------------------|
| f(x, w₀, λ+ε)           | `primal`  | output at the current weights               |
| J_yw Θδ                 | `tangent` | directional derivative of f along Θδ        |

Layers with a response add their part of the tangent (see `Response`). PyTorch's forward-mode rules do the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ray_deltastn.response.carried import divided
from ray_deltastn.response.elementary import Elementary
from ray_deltastn.response.response import Response
from ray_deltastn.response.trees import called, mapped, tensors

# PyTorch compiles some forward-mode rules for the first dual number. It then warns that it uses TorchScript itself.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    with fwAD.dual_level():
        fwAD.make_dual(torch.zeros(1), torch.zeros(1))


@contextmanager
def rules_for_attention() -> Iterator[None]:
    """Context in which attention has a forward-mode rule."""
    # The fused attention kernels and the inference path of nn.MultiheadAttention have no forward-mode rule.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def rules(response: Response) -> ExitStack:
    """Contexts in which all functions of the network have a forward-mode rule with a backward pass."""
    stack = ExitStack()
    if response.attends:
        stack.enter_context(rules_for_attention())
    if response.elementary:
        stack.enter_context(Elementary())
    return stack


def linearised_forward(
    model: nn.Module,
    x: Any,
    response: Response,
    delta: Tensor,
    noted: list[tuple[Any, Tensor]] | None = None,
    carries: bool = False,
) -> Any:
    """f(x, w₀, λ+ε) + J_yw Θδ, the prediction of the linearised network (Eqn. 3.13).

    Run the backward pass after this function has returned. Inside the forward-mode level a backward pass costs more
    than twice as much, because it also computes tangents.

    Args:
        model: the network, at its current weights w₀.
        x: inputs (B, …); a mapping gives keyword arguments, a tuple positional ones.
        response: the response attached to `model`.
        delta: displacement δ, (B, h) or (1, h).
        noted: pairs whose second entry is an activation that the pass takes a note of; it is linearised in place.
        carries: whether the network returns a pair (output, state). The state is then that of the network at w₀.

    Returns:
        Predictions with the structure and shapes of the network's output, differentiable in Θ and δ.

    Raises:
        NotImplementedError: if a layer has no forward-mode rule, such as the fused kernels of LSTM and GRU.
    """
    with fwAD.dual_level(), response.displaced(delta, linearised=True), rules(response):
        output = called(model, x)
        parts = {id(t): fwAD.unpack_dual(t) for t in (*tensors(output), *(t for _, t in noted or ()))}
    for i, (key, t) in enumerate(noted or ()):
        noted[i] = (key, _sum(*parts[id(t)]))  # type: ignore[index]
    if carries:
        found, state = divided(output)
        return mapped(lambda t: _sum(*parts[id(t)]), found), mapped(lambda t: parts[id(t)].primal, state)
    return mapped(lambda t: _sum(*parts[id(t)]), output)


def _sum(primal: Tensor, tangent: Tensor | None) -> Tensor:
    if tangent is None:
        return primal
    # If the network runs in bfloat16, the sum is in float32. In bfloat16 the sum would lose a small response.
    return primal.float() + tangent.float() if primal.dtype == torch.bfloat16 else primal + tangent
