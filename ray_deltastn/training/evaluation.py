"""Loss, accuracy and a user's own metrics over one split, in evaluation mode and without perturbation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ray_deltastn.methods import Loss, Objective
from ray_deltastn.training.data import Stream

Metric = Callable[[Tensor, Tensor], Tensor]


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of right classes: output (B, C, …), target (B, …) of whole numbers."""
    return (output.argmax(1) == target).double().mean()


def is_classification(output: Tensor, target: Tensor) -> bool:
    """Whether accuracy means something: whole-number targets with one axis fewer than the output."""
    return not target.is_floating_point() and output.dim() == target.dim() + 1


def evaluate(objective: Objective, stream: Stream, loss: Loss, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Means over one pass: `loss`, `accuracy` for classification, and each metric by name.

    The weights are those at the current λ: w₀, or r(λ) for a method whose response is not centred. Penalties do not
    count. A `DataLoader` decides which examples it gives (`drop_last`, samplers).
    """
    model = objective.model
    was_training = model.training
    model.eval()
    totals: dict[str, Tensor] = {}
    count = 0
    with torch.no_grad():
        delta = objective.delta(objective.space.lam.detach(), None)
        for x, y in stream.in_order():
            x = objective.in_order(x)
            with objective.precision(x):
                if delta is None or objective.response is None:
                    output = model(x)
                else:
                    with objective.response.displaced(delta):
                        output = model(x)
            output = output.float() if objective.half else output
            found = {"loss": loss(output, y).double().mean()}
            if is_classification(output, y):
                found["accuracy"] = accuracy(output, y)
            found.update({name: torch.as_tensor(metric(output, y)).double().mean() for name, metric in metrics.items()})
            for name, value in found.items():
                totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64, device=x.device)) + value * len(x)
            count += len(x)
    model.train(was_training)
    return {name: total.item() / count for name, total in totals.items()}
