"""Gradients from the definition, with a dense change of all weights for each example, on the CPU in float64.

| symbol            | code         | shape       | meaning                                                       |
|-------------------|--------------|-------------|---------------------------------------------------------------|
| δ_b               | `delta[b]`   | (h,)        | displacement of one example                                   |
| ΔW_b = (Uδ_b) ⊙_row W_resp | `change` | parameter's | change of one parameter for one example (3.14, E.1)     |
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, jvp

import ray_deltastn as rd
from ray_deltastn.response import Response, Weights
from ray_deltastn.response.linearise import rules_for_attention

#: Weight of the entropy, τ.
ENTROPY = 0.37


class Decay:
    """s (1 + o²)/2 · ‖w₀ + Θδ‖², a penalty for two hyperparameters."""

    names: tuple[str, ...] = ("decay", "other")

    def __call__(self, values: Mapping[str, Tensor], weights: Weights) -> Tensor:
        """One value per example, or one for all."""
        return _strength(values) * weights.squared_norm()


def _strength(values: Mapping[str, Tensor]) -> Tensor:
    return values["decay"] * (1 + values["other"].square()) / 2


def penalty(tuner: rd.SelfTuner, lam: Tensor, delta: Tensor) -> Tensor:
    """The mean of `Decay` over the examples, with λ (B or 1, h)."""
    assert tuner.response is not None
    strength = _strength(tuner.space.named(tuner.space.values(lam)))
    norms = []
    for row in delta:
        moves = change(tuner.response, row)
        norms.append(sum((w + moves.get(n, 0.0)).square().sum() for n, w in tuner.model.named_parameters()))
    return (strength * torch.stack(norms)).mean()  # type: ignore[arg-type]


def change(response: Response, delta: Tensor) -> dict[str, Tensor]:
    """ΔW of every responding parameter for one displacement (h,), by name."""
    found = {}
    for slot in response.slots:
        direction, factor = response.direction(slot), response.U[slot.start : slot.stop] @ delta
        shape = [1] * direction.dim()
        shape[slot.rows == "feature"] = -1
        found[slot.name] = (factor.view_as(direction) if slot.rows == "element" else factor.view(shape)) * direction
    return found


def prediction(tuner: rd.SelfTuner, x: Tensor, delta: Tensor) -> Tensor:
    """f(x, w₀ + Θδ), or f(x, w₀) + J_yw Θδ for a linearised method; one row of δ for all examples, or one for each."""
    assert tuner.response is not None
    model = tuner.model
    weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    outputs = []
    for row, part in zip(delta, [x] if len(delta) == 1 else x.split(1), strict=True):
        moves = {name: torch.zeros_like(w) for name, w in weights.items()} | change(tuner.response, row)

        def at(given: dict[str, Tensor], part: Tensor) -> Tensor:
            copies = {name: b.clone() for name, b in buffers.items()}
            out: Tensor = functional_call(model, {**given, **copies}, (part,))
            return out

        if tuner.method.linearized:
            pair = jvp(partial(at, part=part), (weights,), (moves,))
            outputs.append(pair[0] + pair[1])
        else:
            outputs.append(at({name: w + moves[name] for name, w in weights.items()}, part))
    return torch.cat(outputs)


def gradients(tuner: rd.SelfTuner, x: Tensor, y: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Gradients of the training loss in Θ under ε = σ ⊙ z, and of the hyper step's loss in λ and σ, by name.

    Args:
        tuner: a run on the CPU in float64, with the penalty `Decay`.
        x: inputs (B, …).
        y: targets (B,).
        z: standard normal numbers (B or 1, h).
    """
    space, model = tuner.space, tuner.model
    assert tuner.response is not None
    theta = dict(tuner.response.named_parameters())
    loss = tuner.objective.loss
    with rules_for_attention():
        model.train()
        eps = (space.scale * z).detach()
        train = loss(prediction(tuner, x, eps), y) + penalty(tuner, space.lam.detach() + eps, eps)
        found = torch.autograd.grad(train, list(theta.values()), allow_unused=True)
        named = dict(zip(theta, found, strict=True))
        model.eval()
        scale = space.scale.detach().requires_grad_()
        lam = space.lam.detach().requires_grad_()
        valid = loss(prediction(tuner, x, scale * z + lam - lam.detach()), y) - ENTROPY * scale.log().sum()
        named |= dict(zip(("lambda", "sigma"), torch.autograd.grad(valid, (lam, scale)), strict=True))
    return {name: torch.zeros_like(theta[name]) if g is None else g for name, g in named.items()}
