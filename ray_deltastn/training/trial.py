"""Trial passes before the first step: what cannot work in a step is refused in one line that names the layer.

Activation checkpointing (`torch.utils.checkpoint`) computes a part of the network again in the backward pass, which is
after the pass. The values of the hyperparameters, the displacement and the tangents belong to the pass, and masks come
from an explicit generator. So the second computation would be another function, or an error.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ray_deltastn.methods import Objective
from ray_deltastn.response.trees import rows, tensors
from ray_deltastn.training.kept import kept_generator, kept_model
from ray_deltastn.training.misfits import MISFITS, entered, first_line
from ray_deltastn.training.random_state import isolated

#: The file whose functions are on the stack while a part is computed that will be computed again.
_FILE = torch.utils.checkpoint.__file__
#: What to use instead of a method with a linearised pass.
NOT_LINEARISED = "use 'centered-stn' or 'stn', which need no forward-mode rules"


def try_steps(objective: Objective, x: Any) -> None:
    """Run the passes of the network in a train step and in an evaluation on a few training examples.

    Other errors than those below are left to the first step.

    Args:
        objective: the objective, with its model.
        x: inputs (B, …).

    Raises:
        TypeError: if a layer is computed again in the backward pass (for a method that trains plainly, if this fails),
            or if an operation has no forward-mode rule.
    """
    model, method = objective.model, objective.method
    plain = not (method.responds or method.tunes)
    weights = [p for p in model.parameters() if p.requires_grad]
    linearised = method.linearized and objective.response is not None
    with (
        kept_model(model),
        kept_generator(objective),
        isolated(0, objective.space.lam.device),
        torch.enable_grad(),
        _recomputed(model) as again,
        entered(model) as layers,
    ):
        for training, perturbed in ((False, False), (True, False), (True, True)):
            if perturbed and not (linearised and not again):
                continue
            model.train(training)
            try:
                output = _output(objective, x, perturbed)
                if training and again and plain:
                    torch.autograd.grad(_total(output), weights, allow_unused=True)
                    return
            except (*MISFITS, TypeError, KeyError, AttributeError) as error:
                refused = without_rule(error, method.name, layers) if perturbed else None
                if refused is not None:
                    raise refused from error
    if again:
        name, kind = again[0]
        raise TypeError(
            f"activation checkpointing must be off for '{method.name}', got `torch.utils.checkpoint` around layer "
            f"'{name}' ({kind}); switch it off with `gradient_checkpointing_disable()` (transformers) or "
            "`set_grad_checkpointing(False)` (timm), or call the layer directly"
        )


def _output(objective: Objective, x: Any, perturbed: bool) -> Any:
    """The output of a pass at the present λ, in training mode with augmentations, or under a perturbation."""
    space, lam = objective.space, objective.space.lam.detach()
    eps = objective.sample(rows(x)).detach() if perturbed else None
    try:
        if objective.model.training:
            values = space.values(lam if eps is None else lam + eps)
            objective.pass_values.values = space.named(values if objective.constant is None else objective.constant)
            for augmentation in objective.augment:
                x = augmentation(x, objective.pass_values)
        return objective.predict(x, objective.delta(lam, eps))
    finally:
        objective.pass_values.values = {}


def _total(output: Any) -> Tensor:
    return torch.stack([t.sum() for t in tensors(output) if t.requires_grad]).sum()


def without_rule(error: BaseException, method: str, layers: Sequence[tuple[str, str]]) -> TypeError | None:
    """The error of a linearised pass that meets an operation without a forward-mode rule; None for another error.

    Args:
        error: what was raised.
        method: name of the method.
        layers: the layers called so far, by name and class.
    """
    if not isinstance(error, NotImplementedError | RuntimeError) or "forward" not in str(error).lower():
        return None
    name, kind = layers[-1] if layers else ("", "the model")
    return TypeError(
        f"every operation must have a forward-mode rule for '{method}', got none in layer '{name}' ({kind}) or in what "
        f"follows it: {first_line(error)}; {NOT_LINEARISED}"
    )


@contextmanager
def _recomputed(model: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Context that records the layers, by name and class, that are called inside a checkpointed function."""
    layers: list[tuple[str, str]] = []

    def before(module: nn.Module, name: str) -> None:
        if any(frame.f_code.co_filename == _FILE for frame, _ in traceback.walk_stack(None)):
            layers.append((name, type(module).__name__))

    handles = [
        module.register_forward_pre_hook(lambda m, args, n=name: before(m, n)) for name, module in model.named_modules()
    ]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
