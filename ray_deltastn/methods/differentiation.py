"""Hypergradients without a learned response: implicit differentiation and unrolled training.

At weights w*(λ) with ∇_w L_T(λ, w*) = 0 the implicit function theorem gives the response Jacobian (Eqn. 2.3)

    ∂w*/∂λ = −H⁻¹ ∂²L_T/∂w∂λ,    H = ∂²L_T/∂w²,

and with it the hypergradient d/dλ L_V(λ, w*(λ)) = ∂_λ L_V − ⟨q, ∂²L_T/∂w∂λ⟩ with q = H⁻¹ ∇_w L_V. `conjugate_gradient`
and `neumann` need products Hv only, so neither H nor its inverse is computed. Unrolling differentiates through the
updates of the weights instead, w_{t+1} = w_t − α v_{t+1} with v_{t+1} = μ v_t + ∇_w L_T(λ, w_t).

| symbol  | code         | shape               |
|---------|--------------|---------------------|
| w       | `weights`    | list of parameters  |
| λ       | `lam`        | (h,)                |
| Hv      | `product(v)` | (p,), p weights in all |
| q       | `q`          | (p,)                |
| ρ       | `damping`    | ()                  |
| α, μ    | `step` or `rates`, `momentum` | () |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def conjugate_gradient(product: Product, b: Tensor, iterations: int, tolerance: float = 1e-12) -> Tensor:
    """Solution x of Hx = b for symmetric positive definite H, by conjugate gradients (Hestenes and Stiefel 1952).

    H is not positive definite where L_T is not convex. At the first direction d with dᵀHd ≤ 0 the updates of x end. If
    this is the first direction of all, which is b, the result is b, the solution for H = I. The updates also end when
    the residual is below `tolerance`. The loop never waits for the device.

    Args:
        product: v (p,) ↦ Hv (p,).
        b: right-hand side (p,).
        iterations: number of products. p products give the solution up to rounding.
        tolerance: relative residual ‖b − Hx‖/‖b‖ below which x is the solution.

    Returns:
        x (p,).
    """
    x, residual, direction = torch.zeros_like(b), b, b
    squared = residual.dot(residual)
    least = tolerance**2 * squared
    going = squared > 0
    began = ~going
    for iteration in range(iterations):
        image = product(direction)
        curvature = direction.dot(image)
        going = going & (squared > least) & (curvature > 0)
        began = began if iteration else going
        step = torch.where(going, squared / curvature.where(going, torch.ones_like(curvature)), 0.0)
        x = x + step * direction
        residual = residual - step * image
        before, squared = squared, residual.dot(residual)
        direction = residual + squared / before.clamp_min(torch.finfo(b.dtype).tiny) * direction
    return torch.where(began, x, b)


def neumann(product: Product, b: Tensor, iterations: int, step: float) -> Tensor:
    """The truncated series α Σ_{j=0..K} (I − αH)ʲ b for H⁻¹b (Lorraine et al. 2020).

    It converges for step sizes 0 < α < 2/‖H‖. Along each eigenvector of H it converges at the rate of gradient descent.

    Args:
        product: v (p,) ↦ Hv (p,).
        b: right-hand side (p,).
        iterations: number of products K.
        step: α.

    Returns:
        The sum (p,).
    """
    term = total = b
    for _ in range(iterations):
        term = term - step * product(term)
        total = total + term
    return step * total


def implicit_hypergradient(
    train_loss: Tensor,
    valid_loss: Tensor,
    weights: Sequence[Tensor],
    lam: Tensor,
    solve: Callable[[Product, Tensor], Tensor],
    damping: float = 0.0,
) -> Tensor:
    """d/dλ L_V(λ, w*(λ)) = ∂_λ L_V − ⟨(H + ρI)⁻¹ ∇_w L_V, ∂²L_T/∂w∂λ⟩, (h,) (Eqn. 2.4).

    The weight decay of an optimiser is part of ρ, because the weights converge to ∇_w L_T + ρw = 0. At these weights
    the result is as exact as the linear solver. At other weights it is the value of the formula.

    Args:
        train_loss: L_T(λ, w), a scalar with its graph.
        valid_loss: L_V(λ, w), a scalar with its graph.
        weights: the parameters w.
        lam: λ (h,).
        solve: (product, b) ↦ H⁻¹b, for example `conjugate_gradient` with a fixed number of iterations.
        damping: ρ, added to the diagonal of H.
    """
    gradient = _vector(torch.autograd.grad(train_loss, weights, create_graph=True, materialize_grads=True))
    *outer, direct = torch.autograd.grad(valid_loss, [*weights, lam], materialize_grads=True)

    def product(v: Tensor) -> Tensor:
        image = torch.autograd.grad(gradient, weights, v, retain_graph=True, materialize_grads=True)
        return _vector(image) + damping * v

    q = solve(product, _vector(outer))
    (mixed,) = torch.autograd.grad(gradient, lam, q, materialize_grads=True)
    return direct - mixed


def unroll(
    start: Mapping[str, Tensor],
    momenta: Mapping[str, Tensor],
    losses: Sequence[Callable[[Mapping[str, Tensor]], Tensor]],
    rates: Sequence[float],
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    clip_grad: float | None = None,
) -> dict[str, Tensor]:
    """Weights after several steps of PyTorch's SGD with momentum, with the graph through all steps.

    Args:
        start: weights before the first step, by name.
        momenta: momentum buffers before the first step, by name. A missing buffer counts as zero.
        losses: L_T of each step, as a function of the weights.
        rates: learning rate of each step.
        momentum: μ.
        weight_decay: weight decay of the optimiser.
        clip_grad: largest gradient norm; None means no clipping.

    Returns:
        Weights after the last step, by name.
    """
    weights, speeds = dict(start), dict(momenta)
    for loss, lr in zip(losses, rates, strict=True):
        moved = list(weights.values())
        gradients = torch.autograd.grad(loss(weights), moved, create_graph=True, materialize_grads=True)
        factor: Tensor | float = 1.0
        if clip_grad is not None:
            factor = (clip_grad / (torch.linalg.vector_norm(_vector(gradients)) + 1e-6)).clamp(max=1.0)
        for (name, weight), gradient in zip(list(weights.items()), gradients, strict=True):
            change = factor * gradient + weight_decay * weight
            speeds[name] = momentum * speeds[name] + change if name in speeds else change
            weights[name] = weight - lr * speeds[name]
    return weights


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
