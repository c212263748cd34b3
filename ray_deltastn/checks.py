"""One cheap look at the task before the first step, so that mistakes show at once and in one line."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ray_deltastn.data import Stream
from ray_deltastn.methods import Objective


def try_out(objective: Objective, valid: Stream) -> None:
    """Run the model, the loss and, if the method linearises, the two-stream pass on a few validation examples.

    Raises:
        TypeError: if the model's output is no tensor, or a layer has no forward-mode rule.
        ValueError: if the loss has a wrong shape, or a layer said to respond is never called.
    """
    model = objective.model
    was_training = model.training
    model.eval()
    x, y = next(iter(valid.in_order()))
    x, y = x[:4], y[:4]
    with torch.no_grad():
        output = objective.predict(x, None)
        if output.shape[0] != x.shape[0]:
            raise ValueError(
                f"`output.shape[0]` must be the batch size, got output of shape {tuple(output.shape)} for {len(x)} "
                "examples"
            )
        for what, function in (("loss", objective.loss), ("valid_loss", objective.valid_loss)):
            loss = function(output, y)
            if not isinstance(loss, torch.Tensor) or loss.shape not in ((), (len(x),)):
                got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise ValueError(f"`{what}` must return a scalar or shape ({len(x)},), got {got}")
        if objective.response is not None:
            delta = torch.zeros(len(x), len(objective.space), device=x.device, dtype=objective.space.lam.dtype)
            try:
                objective.predict(x, delta)
            except (NotImplementedError, RuntimeError) as error:
                if "forward" not in str(error).lower():
                    raise
                raise TypeError(
                    f"every layer must have a forward-mode rule for '{objective.method.name}', got: "
                    f"{str(error).splitlines()[0]}"
                ) from error
            objective.response.drop_uncalled()
    model.train(was_training)


def check_small_batches(objective: Objective, train: Stream) -> None:
    """Raise ValueError if the smallest minibatch holds one example that batch normalisation cannot normalise."""
    normalises = [m for m in objective.model.modules() if isinstance(m, _BatchNorm)]
    if train.smallest_batch != 1 or not normalises:
        return
    if any(isinstance(m, nn.BatchNorm1d) for m in normalises):
        raise ValueError(
            "a minibatch must hold at least two examples under BatchNorm1d, got one at the end of each pass over "
            "`train`; change `batch_size` or drop an example"
        )
