"""A look at a training pass before the first step: does the model use its tuned dropout layers, and how?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ray_deltastn.methods import Objective, RunningStatistics
from ray_deltastn.regularizers import Dropout, RateError, ReadRates
from ray_deltastn.response.look import EXAMPLES
from ray_deltastn.response.trees import called, mapped
from ray_deltastn.training.health import RunWarning
from ray_deltastn.training.misfits import MISFITS, entered
from ray_deltastn.training.random_state import isolated


def several(x: Any) -> Any:
    """`EXAMPLES` examples from inputs (B, …), some of them twice if there are fewer."""
    return mapped(lambda t: t[torch.arange(EXAMPLES, device=t.device) % len(t)] if t.dim() else t, x)


def training_pass(objective: Objective) -> Callable[[Any], Any]:
    """The model in training mode at the current hyperparameters, as a function of inputs.

    Each call has the same random numbers. It leaves running statistics and all generators as they were, and the model
    in evaluation mode.
    """
    model, space = objective.model, objective.space

    def training(inputs: Any) -> Any:
        model.train()
        values = space.values(space.lam.detach()) if objective.constant is None else objective.constant
        objective.pass_values.values = space.named(values)
        try:
            random = isolated(0, space.lam.device)
            with random, kept_generator(objective), RunningStatistics(model).held(), objective.rates():
                return called(model, objective.in_order(inputs))
        finally:
            objective.pass_values.values = {}
            model.eval()

    return training


def look_at_rates(objective: Objective, x: Any) -> None:
    """Find out whether the model reads rates as numbers, and warn of each rate that no layer uses.

    Args:
        objective: the objective, with its model in evaluation mode.
        x: inputs (B, …).

    Raises:
        RateError: if the model uses a rate in a way that cannot have one value per example.
    """
    layers = {name: layer for name, layer in objective.model.named_modules() if isinstance(layer, Dropout)}
    if not layers:
        return
    with torch.no_grad(), ReadRates() as rates, entered(objective.model) as calls:
        objective.reads_rates = False
        try:
            training_pass(objective)(several(x))
        except RateError:
            raise
        except (*MISFITS, TypeError, KeyError):  # the first step shows whether the training data fit
            objective.reads_rates = True
            return
    objective.reads_rates = rates.seen
    acting = {own for name, _ in calls if name in layers for own in layers[name].names}
    for name, layer in layers.items():
        lost = set(layer.names) - acting
        if lost:
            acting |= lost
            warnings.warn(
                f"the layers of a rate must be called in a training pass, got no call for '{min(lost)}', such as of "
                f"layer '{name}'; it then has no effect",
                RunWarning,
                stacklevel=5,
            )


@contextmanager
def kept_generator(objective: Objective) -> Iterator[None]:
    """Context that leaves the random generator of the run as it was."""
    generator = objective.generator
    state = None if generator is None else generator.get_state()
    try:
        yield
    finally:
        if generator is not None and state is not None:
            generator.set_state(state)
