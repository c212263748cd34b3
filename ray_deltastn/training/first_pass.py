"""A look at a training pass before the first step.

Does the model use its tuned dropout layers, and how?
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ray_deltastn.methods import Objective
from ray_deltastn.regularizers import Dropout, RateError, ReadRates, Regularizer
from ray_deltastn.response.look import EXAMPLES
from ray_deltastn.response.trees import called, mapped
from ray_deltastn.training.kept import kept_generator, kept_model
from ray_deltastn.training.misfits import MISFITS, entered
from ray_deltastn.training.random_state import isolated
from ray_deltastn.training.warned import RunWarning


def several(x: Any) -> Any:
    """`EXAMPLES` examples from inputs (B, …), some of them twice if there are fewer."""
    return mapped(lambda t: t[torch.arange(EXAMPLES, device=t.device) % len(t)] if t.dim() else t, x)


@contextmanager
def in_training(objective: Objective) -> Iterator[None]:
    """Context in which the model is in training mode at the current hyperparameters.

    Afterwards its modes and its buffers are as before.
    """
    model, space = objective.model, objective.space
    values = space.values(space.lam.detach()) if objective.constant is None else objective.constant
    objective.pass_values.values = space.named(values)
    try:
        with kept_model(model):
            model.train()
            with objective.rates():
                yield
    finally:
        objective.pass_values.values = {}


def look_at_training(objective: Objective, x: Any) -> None:
    """Find out whether the model reads rates as numbers, and refuse or warn of what would go wrong.

    Args:
        objective: the objective, with its model in evaluation mode.
        x: inputs (B, …).

    Raises:
        RateError: if the model uses a rate in a way that cannot have one value per example.
    """
    layers = {name: layer for name, layer in objective.model.named_modules() if isinstance(layer, Regularizer)}
    if not layers and objective.response is None:
        return
    with torch.enable_grad(), ReadRates() as rates, entered(objective.model) as calls:
        objective.reads_rates = False
        try:
            random = isolated(0, objective.space.lam.device)
            with in_training(objective), random, kept_generator(objective):
                called(objective.model, objective.in_order(several(x)))
        except RateError:
            raise
        except (*MISFITS, TypeError, KeyError):  # the first step shows whether the training data fit
            objective.reads_rates = any(isinstance(layer, Dropout) for layer in layers.values())
            return
        objective.reads_rates = rates.seen
        _warn_of_idle(layers, {name for name, _ in calls})


def _warn_of_idle(layers: Mapping[str, Regularizer], called_ones: Collection[str]) -> None:
    """Warn of each hyperparameter of layers none of which is called."""
    acting = {own for name, layer in layers.items() if name in called_ones for own in layer.names}
    for name, layer in layers.items():
        lost = set(layer.names) - acting
        if lost:
            acting |= lost
            warnings.warn(
                f"the layers of a hyperparameter must be called in a training pass, got no call for "
                f"'{min(lost)}', such as of layer '{name}'; it then has no effect",
                RunWarning,
                stacklevel=6,
            )
