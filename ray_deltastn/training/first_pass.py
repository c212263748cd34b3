"""A look at a training pass before the first step.

Does the model use its tuned dropout layers, and how? Does it compute layers again in the backward pass?
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ray_deltastn.methods import Objective, RunningStatistics
from ray_deltastn.regularizers import Dropout, RateError, ReadRates
from ray_deltastn.response.look import EXAMPLES
from ray_deltastn.response.trees import called, mapped, tensors
from ray_deltastn.training.health import RunWarning
from ray_deltastn.training.misfits import MISFITS, entered
from ray_deltastn.training.random_state import isolated


def several(x: Any) -> Any:
    """`EXAMPLES` examples from inputs (B, …), some of them twice if there are fewer."""
    return mapped(lambda t: t[torch.arange(EXAMPLES, device=t.device) % len(t)] if t.dim() else t, x)


def training_pass(objective: Objective) -> Callable[[Any], Any]:
    """The model in training mode at the current hyperparameters, as a function of inputs.

    Each call has the same random numbers. It leaves buffers and all generators as they were, and the model in
    evaluation mode.
    """
    model, space = objective.model, objective.space

    def training(inputs: Any) -> Any:
        model.train()
        values = space.values(space.lam.detach()) if objective.constant is None else objective.constant
        objective.pass_values.values = space.named(values)
        try:
            random = isolated(0, space.lam.device)
            with random, kept_generator(objective), _kept_buffers(model), objective.rates():
                return called(model, objective.in_order(inputs))
        finally:
            objective.pass_values.values = {}
            model.eval()

    return training


def look_at_training(objective: Objective, x: Any) -> None:
    """Find out whether the model reads rates as numbers, and refuse or warn of what would go wrong.

    Args:
        objective: the objective, with its model in evaluation mode.
        x: inputs (B, …).

    Raises:
        RateError: if the model uses a rate in a way that cannot have one value per example.
        TypeError: if the model computes layers again in the backward pass, where their response and their rates are
            gone.
    """
    layers = {name: layer for name, layer in objective.model.named_modules() if isinstance(layer, Dropout)}
    if not layers and objective.response is None:
        return
    with torch.enable_grad(), ReadRates() as rates, entered(objective.model) as calls:
        objective.reads_rates = False
        try:
            output = training_pass(objective)(several(x))
        except RateError:
            raise
        except (*MISFITS, TypeError, KeyError):  # the first step shows whether the training data fit
            objective.reads_rates = bool(layers)
            return
        objective.reads_rates = rates.seen
        _warn_of_idle(layers, {name for name, _ in calls})
        _require_kept(objective.model, output, calls)


def _warn_of_idle(layers: Mapping[str, Dropout], called_ones: Collection[str]) -> None:
    """Warn of each rate that no layer uses."""
    acting = {own for name, layer in layers.items() if name in called_ones for own in layer.names}
    for name, layer in layers.items():
        lost = set(layer.names) - acting
        if lost:
            acting |= lost
            warnings.warn(
                f"the layers of a rate must be called in a training pass, got no call for '{min(lost)}', such as of "
                f"layer '{name}'; it then has no effect",
                RunWarning,
                stacklevel=6,
            )


def _require_kept(model: nn.Module, output: Any, calls: list[tuple[str, str]]) -> None:
    """Raise TypeError if a backward pass calls layers again."""
    count = len(calls)
    real = [t.sum() for t in tensors(output) if t.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not real or not parameters:
        return
    refused = ""
    try:
        torch.autograd.grad(real, parameters, allow_unused=True)
    except RuntimeError as error:  # also from a layer that is called again
        refused = str(error)
    if len(calls) > count or "checkpoint" in refused:
        again = f" in '{calls[count][0]}' ({calls[count][1]})" if len(calls) > count else ""
        raise TypeError(
            "`model` must keep what its backward pass needs, got layers that are computed again in the backward pass"
            f"{again}; switch checkpointing off, such as with `gradient_checkpointing_disable()` of transformers"
        )


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Context that leaves the buffers of a model as they were, such as running statistics."""
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with RunningStatistics(model).held():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


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
