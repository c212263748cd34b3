"""Contact sheets: images under each augmentation hyperparameter at the low end, middle and high end of its range."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ray_deltastn.plot.figures import literal
from ray_deltastn.regularizers import PassValues, Regularizer
from ray_deltastn.regularizers.strength import as_float
from ray_deltastn.response.trees import described
from ray_deltastn.space import HyperSpace
from ray_deltastn.task import Task
from ray_deltastn.tasks.networks import Normalize
from ray_deltastn.training.data import stream

LEVELS = ("low", "mid", "high")

#: Changes images (B, C, H, W) with the hyperparameters of a `PassValues`.
Act = Callable[[Tensor, PassValues], Tensor]


class NoImagesError(ValueError):
    """The task has no images, or no hyperparameter acts on its images."""


def contact_sheet(task: Task, path: str | Path, examples: int = 6, seed: int = 0) -> Path:
    """Draw the first training images under each hyperparameter that acts on images, one row each, as a PNG.

    In a row, the hyperparameter takes the two ends and the middle of its range. The range is given by its bounds, or by
    its search range if it has no bounds. Other hyperparameters of the same augmentation keep their initial values, and
    all other augmentations are off.

    Args:
        task: a task on images (B, C, H, W) that are in [0, 1], bytes, or standardised. A tuner may be using it.
        path: file to write.
        examples: number of images per level.
        seed: seed of the augmentation.

    Returns:
        The path.

    Raises:
        NoImagesError: if the task's inputs are not images, or no hyperparameter acts on them.
    """
    x, _ = next(iter(stream(task.train, examples, "train", torch.device("cpu"), seed, task.pair).in_order()))
    if not isinstance(x, Tensor) or x.dim() != 4:
        got = f"a batch of shape {tuple(x.shape)}" if isinstance(x, Tensor) else described(x)
        raise NoImagesError(f"`task.train` must hold images (B, C, H, W), got {got}")
    x = x[:examples]
    # Images outside [0, 1] are scaled so that their lowest value is black and their highest is white.
    low, high = as_float(x).min().item(), as_float(x).max().item()
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    space = task.space
    acts = [(name, act) for names, act in actors(task) for name in names]
    if not acts:
        raise NoImagesError(f"`task.space` must hold a hyperparameter that acts on images, got only {space.names}")
    figure = Figure(figsize=(1 + 3 * 0.7 * len(x), 0.95 * len(acts) + 0.5), layout="constrained")
    axes = figure.subplots(len(acts), len(LEVELS), squeeze=False)
    for row, (name, act) in zip(axes, acts, strict=True):
        for axis, level, value in zip(row, LEVELS, levels(space, name), strict=True):
            pass_values = PassValues(space, torch.Generator().manual_seed(seed))
            pass_values.values = {n: torch.tensor(p.initial) for n, p in space.hyperparameters.items()}
            pass_values.values[name] = torch.tensor(value)
            with torch.no_grad():
                images = ((act(x, pass_values) - low) / max(high - low, 1e-12)).clamp(0, 1)
            strip = torch.cat(list(images.permute(0, 2, 3, 1)), 1).numpy()  # (H, B·W, C)
            axis.imshow(
                strip if strip.shape[-1] == 3 else strip[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"{level}: {value:g}", fontsize=8, pad=2)
        row[0].set_ylabel(literal(name), fontsize=8)
    figure.savefig(path, dpi=150)
    return Path(path)


def levels(space: HyperSpace, name: str) -> tuple[float, float, float]:
    """Low end, middle and high end of a hyperparameter's range; on a logarithmic range the middle is geometric."""
    domain = space.hyperparameters[name]
    low, high = domain.bounds
    if math.isinf(low) or math.isinf(high):
        low, high = domain.search_range(name)
    mid = math.sqrt(low * high) if domain.log_search else (low + high) / 2
    return low, float(round(mid)) if domain.integer else mid, high


def actors(task: Task) -> list[tuple[tuple[str, ...], Act]]:
    """The functions that act on a task's images: its augmentations, and its model's dropout before the first weights.

    Returns:
        Pairs of hyperparameter names and a function of images (B, C, H, W) and a `PassValues`.
    """
    found: list[tuple[tuple[str, ...], Act]] = [(a.names, a) for a in task.augmentations]
    before: list[nn.Module] = []
    for layer in task.model.modules():
        if isinstance(layer, Regularizer):
            found.append((layer.names, _on_images(layer, tuple(before))))
        elif isinstance(layer, Normalize | nn.Flatten | nn.Identity):
            before.append(layer)
        elif not list(layer.children()):
            break
    return found


def _on_images(layer: Regularizer, before: tuple[nn.Module, ...]) -> Act:
    """Make a layer act on images: apply the layers before it, then the layer, then undo the layers before it."""
    # Copy the layers, because the task's layers may be bound to a run and on another device.
    layer, before = copy.deepcopy(layer).train(), tuple(copy.deepcopy(module).cpu() for module in before)

    def act(x: Tensor, pass_values: PassValues) -> Tensor:
        layer.bind(pass_values)
        out = as_float(x)
        for module in before:
            out = module(out)
        out = layer(out).reshape(x.shape)
        for module in before:
            out = module.undo(out) if isinstance(module, Normalize) else out
        return out

    return act
