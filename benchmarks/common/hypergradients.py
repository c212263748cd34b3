"""Several estimates of the hypergradient of a run at one moment, for `benchmarks.images_hypergradient`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import ray_deltastn as rd
from benchmarks.common.local_response import LocalModel
from ray_deltastn.tasks import build_task
from ray_deltastn.training.settings import Settings

#: Train steps between the moments of `steady`.
APART = 50


def tuner_of(config: dict[str, Any], **changes: Any) -> rd.SelfTuner:
    """A run of a configuration, with `preset: paper` unless it has another; `changes` replace its settings."""
    torch.manual_seed(config["seed"])
    options = {name: config[name] for name in Settings.names() if name in config}
    task = build_task(config)
    task.test = None  # it is not used here, and its evaluation would take longer than the steps
    return rd.SelfTuner(task, **{"preset": "paper", **options, **changes})


def check(tuner: rd.SelfTuner) -> None:
    """Raise ValueError unless `LocalModel` can model plain training of this run."""
    s = tuner.settings
    rules = {"optimizer": (s.optimizer, "sgd"), "weight_decay": (s.weight_decay, 0), "clip_grad": (s.clip_grad, None)}
    for name, (value, wanted) in rules.items():
        if value != wanted:
            raise ValueError(f"`{name}` must be {wanted!r} for a quadratic model of training, got {value!r}")
    if tuner.task.valid_penalties:
        raise ValueError("`valid_penalty` must be empty for a comparison of validation losses, got a penalty")


def hypergradients(tuner: rd.SelfTuner, batch: int, draws: int, seed: int = 0) -> Tensor:
    """Hypergradients (draws, h) on validation minibatches drawn with replacement, each with new perturbations."""
    space, objective = tuner.space, tuner.objective
    x, y = (torch.cat(parts) for parts in zip(*tuner.valid.in_order(), strict=True))
    generator = torch.Generator(space.lam.device).manual_seed(seed)
    found = []
    tuner.model.eval()
    for _ in range(draws):
        rows = torch.randint(len(x), (batch,), generator=generator, device=generator.device)
        with torch.no_grad():
            eps = space.sample(batch, generator)
        loss = objective.hyper_loss(x[rows], y[rows], eps, 0.0)
        found.append(torch.autograd.grad(loss, space.lam)[0])
    tuner.model.train()
    return torch.stack(found)


def plain_copy(tuner: rd.SelfTuner, config: dict[str, Any], lam: Tensor, **changes: Any) -> rd.SelfTuner:
    """Plain training that starts from a run's weights and momenta, with the hyperparameters fixed at λ."""
    values = dict(zip(tuner.space.names, tuner.space.values(lam).tolist(), strict=True))
    plain = tuner_of(
        config,
        method="fixed",
        preset="paper",
        response_fraction=1.0,
        hyperparameters=values,
        schedule=None,
        patience=None,
        epochs=10_000,
        **changes,
    )
    plain.model.load_state_dict(tuner.export())  # r(λ) for `stn`, the weights at δ = 0 for the other methods
    # A copy is needed, because an optimiser shares the buffers of a state that it loads.
    plain.optimizers.weights.load_state_dict(copy.deepcopy(tuner.optimizers.weights.state_dict()))
    return plain


def steady(tuner: rd.SelfTuner, config: dict[str, Any], batch: int, moments: int) -> list[list[float]]:
    """Hypergradients (moments, h) at later moments of the same run with λ fixed, each the mean of a few draws."""
    later = tuner_of(config)
    later.load_state_dict(tuner.state_dict())
    found = []
    for _ in range(moments):
        train(later, APART)
        found.append(hypergradients(later, batch, 4).mean(0).tolist())
    return found


def train(tuner: rd.SelfTuner, steps: int) -> None:
    """Run `steps` train steps without reports, because a report includes an evaluation."""
    tuner.model.train()
    for _ in range(steps):
        tuner.algorithm.train_step(*tuner.train.next())


def averaged(tuner: rd.SelfTuner, config: dict[str, Any], steps: int) -> rd.SelfTuner:
    """Plain training whose weights are the mean over `steps` train steps that start from a run's current state."""
    lam = tuner.space.lam.detach()
    moving, mean = plain_copy(tuner, config, lam), plain_copy(tuner, config, lam)
    total = [torch.zeros_like(p) for p in moving.model.parameters()]
    for _ in range(steps):
        train(moving, 1)
        torch._foreach_add_(total, list(moving.model.parameters()))
    with torch.no_grad():
        for p, summed in zip(mean.model.parameters(), total, strict=True):
            p.copy_(summed / steps)
    for buffer, last in zip(mean.model.buffers(), moving.model.buffers(), strict=True):
        buffer.copy_(last)
    return mean


def local(
    plain: rd.SelfTuner, lam: Tensor, horizons: Sequence[int], shift: float, images: int, repeats: int
) -> list[list[list[float]]]:
    """Implicit hypergradients at the weights of a plain run, for `repeats` draws of images and masks.

    Returns:
        hyperparameter × repeat × horizon.
    """
    near, lr, momentum = LocalModel(plain, lam, images), plain.optimizers.lr, plain.settings.momentum
    found = [near.hypergradients(lr, momentum, horizons, shift, seed) for seed in range(repeats)]
    every: list[list[list[float]]] = torch.stack(found, 1).tolist()
    return every


def retrained(
    tuner: rd.SelfTuner, config: dict[str, Any], column: int, shift: float, horizons: Sequence[int], seed: int = 0
) -> list[float]:
    """(L_V after N steps with λ_j + shift − L_V after N steps with λ_j − shift) / (2·shift), for each horizon N.

    NaN if a training diverges before step N.
    """
    losses = []
    for sign in (1, -1):
        lam = tuner.space.lam.detach().clone()
        lam[column] += sign * shift
        plain = plain_copy(tuner, config, lam, seed=seed, steps_per_report=math.gcd(*horizons))
        reports = {}
        while plain.steps < max(horizons) and not plain.done:
            report = plain.step()
            reports[plain.steps] = report["valid_loss"]
        losses.append([reports.get(n, math.nan) for n in horizons])
    return [(up - down) / (2 * shift) for up, down in zip(*losses, strict=True)]
