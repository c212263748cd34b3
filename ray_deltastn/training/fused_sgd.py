"""Stochastic gradient descent whose step is one call into PyTorch per type of parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class FusedSGD(torch.optim.SGD):
    """`torch.optim.SGD(fused=True)` without the sorting of parameters that PyTorch does in every step.

    The update is PyTorch's own fused one, v ← μ v + ∇w, w ← w − α v, with the same options and state. In a network of
    a few weights the sorting costs more than the arithmetic of a whole train step. Gradients must be dense and lie in
    memory as their parameters do, which `backward()` sees to and `torch.autograd.grad` does not (`laid_out_as`).

    Args:
        arguments: those of `torch.optim.SGD`.
        options: likewise.

    Raises:
        ValueError: with dampening, which it does not know.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "fused": True})
        self._step_supports_amp_scaling = False  # `GradScaler` then divides the gradients itself
        if any(group["dampening"] for group in self.param_groups):
            raise ValueError(f"`dampening` must be 0, got {[group['dampening'] for group in self.param_groups]}")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step along the gradients in `.grad`; `closure` computes them anew and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            kinds = {(p.dtype, p.device) for p in moved}
            for kind in kinds:
                self._update(moved if len(kinds) == 1 else [p for p in moved if (p.dtype, p.device) == kind], group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        buffers = []
        if group["momentum"] != 0:
            for parameter in parameters:
                state = self.state[parameter]
                if state.get("momentum_buffer") is None:
                    # From zero the first step is the gradient itself, as PyTorch has it.
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffers.append(state["momentum_buffer"])
        gradients: list[Any] = [p.grad for p in parameters]
        with torch.no_grad():
            torch._fused_sgd_(
                parameters,
                gradients,
                buffers,
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=False,
            )
