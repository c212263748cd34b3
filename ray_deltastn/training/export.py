"""A tuned network as the state of an ordinary one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_deltastn.response import Response


def plain_state(model: nn.Module, response: Response | None, lam: Tensor) -> dict[str, Tensor]:
    """A copy of the model's `state_dict`, with the response r(λ) folded into the weights if there is one.

    Args:
        model: the network.
        response: the response to fold in; None to take the weights as they are.
        lam: λ (h,).
    """
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if response is None:
        return state
    with torch.no_grad():
        folded = response.fold(lam)
    tied = {id(p): folded[name] for name, p in model.named_parameters() if name in folded}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in tied:
            state[name] = tied[id(parameter)].detach().clone()
    return state
