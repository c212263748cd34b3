"""Checks of the task before the first step, so that each mistake gives one clear line at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ray_deltastn.domains import Integer
from ray_deltastn.methods import Method, Objective, RunningStatistics, get_method
from ray_deltastn.regularizers import L2, PassValues, Regularizer
from ray_deltastn.response.elementary import Elementary
from ray_deltastn.response.look import EXAMPLES, LostTangentError, look
from ray_deltastn.response.trees import called, described, rows, taken, tensors
from ray_deltastn.space import HyperSpace
from ray_deltastn.task import Task
from ray_deltastn.training.carrying import carried, require_carried, require_known_tokens, versions
from ray_deltastn.training.data import stream
from ray_deltastn.training.first_pass import in_training, look_at_training, several
from ray_deltastn.training.kept import kept_generator
from ray_deltastn.training.misfits import (
    MISFITS,
    entered,
    lost,
    predicted,
    require_gradient,
    require_mean,
    require_outer_loss,
)
from ray_deltastn.training.random_state import isolated
from ray_deltastn.training.streams import Stream
from ray_deltastn.training.trial import NOT_LINEARISED, try_steps, without_rule
from ray_deltastn.training.warned import RunWarning

#: Share of the trainable weights with a response below which a run warns.
LOW_COVERAGE = 0.5


class _Attention(TorchFunctionMode):
    """Records whether fused attention is called inside the context."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def warn_of_decay(task: Task, optimizer: str) -> None:
    """Warn if an L2 penalty is trained with AdamW, whose own weight decay is something else."""
    names = [penalty.names[0] for penalty in task.penalties if isinstance(penalty, L2)]
    if optimizer == "adamw" and names:
        warnings.warn(
            f"`L2` is not the weight decay of AdamW: train again with '{names[0]}' as a penalty in the loss "
            "(`rd.refit`, or ½·s·‖w‖² in plain PyTorch), or use `optimizer: adam`, whose `weight_decay` it is",
            RunWarning,
            stacklevel=3,
        )


def check_differentiable(task: Task, method: Method) -> None:
    """Refuse hyperparameters in which a method cannot differentiate L_T.

    Raises:
        ValueError: if the method has no response and a hyperparameter is a whole number, or does not act through a
            penalty.
    """
    if method.responds or not method.tunes:
        return
    reasons = {name: f"of {type(user).__name__}" for user in task.samplers for name in user.names}
    reasons |= {name: "a whole number" for name, p in task.space.hyperparameters.items() if isinstance(p, Integer)}
    for name, reason in reasons.items():
        raise ValueError(
            f"hyperparameters must act through penalties for '{method.name}', which differentiates the training loss "
            f"in them, got '{name}', {reason}; use 'delta-stn'"
        )


def check_precision(precision: str, parameters: Iterable[nn.Parameter]) -> None:
    """Raise ValueError unless the model is in float32 or the precision is `fp32`."""
    other = [str(p.dtype) for p in parameters if p.dtype != torch.float32]
    if precision != "fp32" and other:
        raise ValueError(f"`precision={precision}` needs a float32 model, got {other[0]}")


def try_out(
    objective: Objective, valid: Stream, train: Stream | None = None, test: Stream | None = None
) -> tuple[Any, Any]:
    """Run the model, the loss and, if the method has one, the response on a few validation examples.

    If the examples of another split have other types or shapes, the model and the loss also run on a few of them.

    Raises:
        TypeError: if an operation has no forward-mode rule, or the model or the loss does not accept nested tensors.
        ValueError: if data, model and loss do not fit together, the output has no tensor with one entry per example, or
            the loss has a wrong shape or is a sum.
    """
    model = objective.model
    was_training = model.training
    model.eval()
    try:
        require_known_tokens(objective, [train, valid, test])
        x, y = valid.first()
        if objective.augment and not isinstance(x, torch.Tensor):
            raise TypeError(f"`augment` must have inputs that are one tensor, got {described(x)}; augment in the data")
        output = _try_out(objective, x, y)
        look_at_training(objective, valid.first(EXAMPLES)[0])
        for split in (train, test):
            if split is not None:
                _try_out_other(objective, split, x, y)
        if train is not None:
            try_steps(objective, train.first()[0])
        if objective.response is not None:
            _look(objective, valid.first(EXAMPLES)[0])
        return output, y
    finally:
        model.train(was_training)


def try_out_task(task: Task) -> None:
    """Run the model and the loss of a task on a few examples of each split, on the CPU and without a method.

    Args:
        task: the task; its hyperparameters and weights stay as they are.

    Raises:
        TypeError: see `try_out`.
        ValueError: see `try_out`.
    """
    model = task.model.to("cpu")
    pass_values = PassValues(task.space, torch.Generator())
    train, valid = (
        stream(getattr(task, name), 4, name, torch.device("cpu"), 0, task.pair) for name in ("train", "valid")
    )
    objective = Objective(
        model,
        task.loss,
        task.space,
        pass_values,
        get_method("fixed"),
        None,
        valid_loss=task.valid_loss,
        augment=task.augmentations,
        carries=carried(task, [train, valid]),
    )
    objective.constant = task.space.fixed_values({})
    for regularizer in task.regularizers:
        regularizer.bind(pass_values)
    try:
        try_out(objective, valid, train)
    finally:
        for regularizer in task.regularizers:
            regularizer.bind(None)


def _try_out(objective: Objective, x: Any, y: Any) -> Any:
    count = rows(x)
    with torch.no_grad():
        with _Attention() as attention, Elementary() as elementary:
            before = versions(objective, x)
            output = predicted(objective, x, "valid")
            require_carried(objective, x, before)
        shapes = [tuple(t.shape) for t in tensors(output)]
        if not any(shape and shape[0] == count for shape in shapes):
            what = f"output of shape {shapes[0]}" if shapes else described(output)
            raise ValueError(f"`output.shape[0]` must be the batch size, got {what} for {count} examples")
        for which, function in {"loss": objective.loss, "valid_loss": objective.valid_loss}.items():
            loss = lost(function, which, output, y, "valid")
            if not isinstance(loss, torch.Tensor) or loss.shape not in ((), (count,)):
                got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise ValueError(f"`{which}` must return a scalar or shape ({count},), got {got}")
            require_mean(function, which, output, y, loss)
            if which == "loss" or objective.method.tunes:
                require_gradient(function, which, output, y)
            if objective.response is not None and objective.method.linearized:
                require_outer_loss(function, which, output, y, objective.method.name)
    if objective.response is not None:
        modules = any(isinstance(m, nn.MultiheadAttention) for m in objective.model.modules())
        objective.response.attends = attention.seen or modules
        objective.response.elementary = elementary.seen
    return output


def _look(objective: Objective, x: Any) -> None:
    """Look at the response, and name the layer if one has no forward-mode rule."""
    response, method, model = objective.response, objective.method, objective.model
    assert response is not None
    few = several(x)
    space = objective.space
    readers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, Regularizer) and any(space.hyperparameters[own].per == "example" for own in layer.names)
    }

    device = space.lam.device

    def predict(inputs: Any) -> Any:
        # cuDNN's recurrent layers have no backward pass in evaluation mode.
        with isolated(0, device), kept_generator(objective), torch.backends.cudnn.flags(enabled=False):
            return called(model, objective.in_order(inputs))

    layers: list[tuple[str, str]] = []
    try:
        with entered(model) as layers:
            each = readers if space.differs_in_a_batch else None
            look(predict, few, response, method.linearized, each, partial(in_training, objective))
    except (NotImplementedError, RuntimeError) as error:
        refused = without_rule(error, method.name, layers)
        if refused is None:
            raise
        raise refused from error
    except LostTangentError as error:
        raise TypeError(f"{error}; {NOT_LINEARISED}, instead of '{method.name}'") from error
    if response.coverage.share < LOW_COVERAGE:
        warnings.warn(
            f"at least half of the trainable weights should respond to the hyperparameters, got "
            f"{response.coverage.share:.0%}; the largest part without a response is {response.coverage.largest_gap}",
            RunWarning,
            stacklevel=4,
        )


def _try_out_other(objective: Objective, split: Stream, valid_x: Any, valid_y: Any) -> None:
    """Run the model and the loss on examples of a split, unless they look like those of validation."""
    x, y = split.first()
    kinds = [
        [described(pair[0]), described(pair[1]), *((t.dtype, t.shape[1:]) for t in tensors(pair))]
        for pair in ((x, y), (valid_x, valid_y))
    ]
    if kinds[0] == kinds[1]:
        return
    with torch.no_grad():
        if split.name == "train":
            _try_out_train(objective, x, y)
        else:
            lost(objective.valid_loss, "valid_loss", predicted(objective, x, split.name), y, split.name)


def _try_out_train(objective: Objective, x: Any, y: Any) -> None:
    if objective.augment:  # augmentations may change the type of the inputs
        try:
            with kept_generator(objective):
                objective.train_loss(x, y)
            return
        except MISFITS:
            pass  # the lines below raise the error again, with its cause
    lost(objective.loss, "loss", predicted(objective, x, "train"), y, "train")


def uses_batch_statistics(model: nn.Module) -> bool:
    """Whether a layer normalises with the statistics of the batch in training mode."""
    return any(isinstance(m, _BatchNorm) for m in model.modules())


def check_statistics(objective: Objective, parts: int) -> None:
    """Warn if the examples of one pass are normalised together, but have different perturbations.

    What λ and Θ do to the statistics of the batch then averages out, and the response is wrong for the layers before
    and behind the normalisation.

    Args:
        objective: the objective, with its model.
        parts: number of passes over a minibatch that trains Θ, each with one perturbation; 1 for a pass with one
            perturbation per example.
    """
    if (
        parts == 1
        and objective.response
        and objective.space.differs_in_a_batch
        and uses_batch_statistics(objective.model)
    ):
        own = [name for name, p in objective.space.hyperparameters.items() if p.per == "example"]
        # A method that trains Θ along with w₀ has no sub-batches.
        remedy = ", or `sub_batches` larger than 1," if objective.method.trains_apart else ""
        warnings.warn(
            f'hyperparameters must be `per="batch"`{remedy} in a network with batch normalisation, got '
            f"`sub_batches` 1 and '{own[0]}' with a perturbation for each example: the learned response is biased",
            RunWarning,
            stacklevel=3,
        )


def check_scales(space: HyperSpace) -> None:
    """Warn if the declared perturbation scale σ is tuned and above the largest σ that its box allows."""
    for name, sigma, most in zip(space.names, space.first_scales(), space.most_scales(), strict=True):
        if sigma > most * (1 + 1e-6):
            warnings.warn(
                f"`scale <= {most:g}` must hold for '{name}' if σ is tuned, got {sigma:g}: the first hyper step lowers "
                "it; give a smaller `scale`, or `tune_scale: false`",
                RunWarning,
                stacklevel=3,
            )


def check_small_batches(objective: Objective, train: Stream, response_fraction: float) -> None:
    """If the smallest pass of a minibatch has one example, run it through batch normalisation.

    Raises:
        ValueError: if a layer cannot normalise one example.
    """
    layers = [name for name, m in objective.model.named_modules() if isinstance(m, _BatchNorm)]
    smallest = train.smallest_batch
    if not layers or not smallest or max(1, round(response_fraction * smallest)) > 1:
        return
    x, y = next(iter(train.in_order()))
    was_training = objective.model.training
    objective.model.train()
    try:
        with torch.no_grad(), RunningStatistics(objective.model).held(), kept_generator(objective):
            objective.train_loss(taken(x, slice(1)), taken(y, slice(1)))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "every pass over a minibatch of `train` must have at least two examples under "
            f"{type(objective.model.get_submodule(layers[0])).__name__} '{layers[0]}', got one from the smallest "
            f"minibatch of {smallest} with `response_fraction` {response_fraction:g}; change `batch_size`"
        ) from None
    finally:
        objective.model.train(was_training)
