"""What the learned response says: the predicted validation loss along each hyperparameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ray_deltastn.methods import Objective
from ray_deltastn.response.trees import rows, split, taken
from ray_deltastn.training.streams import Batch, Stream

if TYPE_CHECKING:
    import pandas as pd

#: Largest distance from λ, in units of σ, and number of points on the way.
WIDTH, POINTS = 2.0, 9
#: Number of parts of the validation data whose differences give the standard error.
PARTS = 20
COLUMNS = ("hyperparameter", "offset", "value", "change", "error", "loss")


def sensitivity(
    objective: Objective, valid: Stream, linearized: bool | None, examples: int | None = None
) -> pd.DataFrame:
    """L_V(w₀ + Θ(λ − λ₀ + t σ_i e_i)) for each hyperparameter i and t in [−2, 2].

    It takes up to `POINTS` + 1 passes over the examples for each hyperparameter.

    Args:
        objective: the objective, with its response.
        valid: validation data.
        linearized: whether the prediction is that of the linearised network; None means as the method does.
        examples: number of validation examples, the first ones; None means all.

    Returns:
        One row per hyperparameter and point: `hyperparameter`; `offset`, t; `value`, s(λ + t σ_i e_i); `change` of the
        loss against t = 0; `error`, the standard error of the change over parts of the validation data; `loss`. Points
        outside the box of λ are left out.

    Raises:
        ValueError: if the method has no response.
    """
    import pandas as pd  # it takes long, and training does not need it

    if objective.response is None:
        raise ValueError("`sensitivity` needs a method that learns a response, got one without")
    space = objective.space
    lam, scale = space.lam.detach(), space.scale.detach()
    low, high = space.box
    steps = torch.linspace(-WIDTH, WIDTH, POINTS, dtype=lam.dtype, device=lam.device)
    was_training = objective.model.training
    objective.model.eval()
    found = []
    with torch.no_grad():
        parts = _parts(objective, valid, examples)
        sizes = torch.tensor([valid.weight(x, y) for x, y in parts], dtype=torch.float64)
        center = _losses(objective, parts, torch.zeros_like(lam), linearized)
        for i, name in enumerate(space.names):
            for t in steps.tolist():
                eps = torch.zeros_like(lam)
                eps[i] = t * scale[i]
                if not low[i] <= lam[i] + eps[i] <= high[i]:
                    continue
                change = _losses(objective, parts, eps, linearized) - center
                mean = float((change * sizes).sum() / sizes.sum())
                error = float(change.std() / len(parts) ** 0.5) if len(parts) > 1 else 0.0
                loss = float((center * sizes).sum() / sizes.sum()) + mean
                found.append((name, t, space.values(lam + eps)[i].item(), mean, error, loss))
    objective.model.train(was_training)
    table: pd.DataFrame = pd.DataFrame(found, columns=list(COLUMNS))
    return table


def _parts(objective: Objective, valid: Stream, examples: int | None) -> list[Batch]:
    """The validation data in about `PARTS` parts of one pass; each has the state that w₀ has left before it."""
    batches, left = [], examples
    for x, y in valid.in_order():
        batches.append((taken(objective.kept(x), slice(left)), taken(y, slice(left))))
        if objective.carries:
            objective.unperturbed(x)
            objective.carry(x)
        left = None if left is None else left - rows(batches[-1][0])
        if left == 0:
            break
    each = max(1, PARTS // len(batches))
    return [
        (x, y)
        for batch, targets in batches
        for x, y in zip(split(batch, each), split(targets, each), strict=True)
        if rows(x)
    ]


def _losses(objective: Objective, parts: list[Batch], eps: Tensor, linearized: bool | None) -> Tensor:
    """Validation loss of each part under the perturbation ε (h,)."""
    lam = objective.space.lam.detach()
    found = []
    for x, y in parts:
        output = objective.predict(x, objective.delta(lam, eps.expand(rows(x), -1)), linearized=linearized)
        found.append(objective.valid_loss(output, y).double().mean())
    return torch.stack(found).cpu()
