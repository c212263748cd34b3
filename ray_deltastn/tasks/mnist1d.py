"""A perceptron on MNIST-1D, 8,000 generated signals of 40 points (Greydanus and Kobak 2024). It downloads no data.

The plain network over-fits a small training split of this set strongly, so regularisation matters.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_deltastn.domains import Bounded, Hyperparameter, Positive
from ray_deltastn.regularizers import L2, Dropout
from ray_deltastn.space import HyperSpace
from ray_deltastn.task import Task
from ray_deltastn.tasks.cache import user_cache
from ray_deltastn.tasks.options import started, whole
from ray_deltastn.training.files import written_whole

Split = tuple[Tensor, Tensor]

#: Number of signals, and of those in the validation and the test split.
SIGNALS, VALID, TEST = 8000, 500, 3000


def mnist1d(rows: int = 1000, seed: int = 0) -> tuple[Split, Split, Split]:
    """Training, validation and test split: `rows`, 500 and 3,000 signals.

    The first call generates the signals with the package `mnist1d` and its default seed, and keeps them in the user's
    cache folder. This takes a few seconds.

    Args:
        rows: number of training signals, at most 4,500.
        seed: seed of the permutation before the split.

    Returns:
        Three pairs (x, y): signals (n, 40) in float32, labels (n,).

    Raises:
        ValueError: if there are not so many signals.
        ImportError: if the package `mnist1d` is not installed.
    """
    if rows > SIGNALS - VALID - TEST:
        raise ValueError(f"`rows <= {SIGNALS - VALID - TEST}` must hold, got {rows}")
    x, y = _signals()
    order = torch.randperm(SIGNALS, generator=torch.Generator().manual_seed(seed))
    test, valid, train = order[:TEST], order[TEST : TEST + VALID], order[TEST + VALID : TEST + VALID + rows]
    return (x[train], y[train]), (x[valid], y[valid]), (x[test], y[test])


def _signals() -> Split:
    path = user_cache() / f"mnist1d-{SIGNALS}.npz"
    if not path.exists():
        x, y = _generate()
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as draft, draft.open("wb") as file:
            np.savez(file, x=x, y=y)
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])


def _generate() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise ImportError(
            "the task `mnist1d-mlp` needs the package `mnist1d`: `pip install 'ray-deltastn[tasks]'`"
        ) from error
    arguments = get_dataset_args()
    arguments.num_samples = SIGNALS
    # The package seeds the global random numbers.
    before = random.getstate(), np.random.get_state()
    try:
        made = make_dataset(arguments)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    x, y = (np.concatenate([made[part], made[f"{part}_test"]]) for part in ("x", "y"))
    return x.astype(np.float32), y.astype(np.int64)


def mnist1d_mlp(config: Mapping[str, Any]) -> Task:
    """Ready task `mnist1d-mlp`: three dropout rates and weight decay of a 40-`width`-…-10 perceptron.

    Args:
        config: options of the task: `rows` (number of training signals, default 1000, at most 4500), `width` (number
            of units of each hidden layer, default 256), `layers` (number of hidden layers, default 2), `split_seed`
            (default 0), `initial_values` (name → initial value) and `perturbation_scale` (initial σ).

    Raises:
        ValueError: if an option breaks its rule.
        ImportError: if the package `mnist1d` is not installed.
    """
    width, layers = whole(config, "width", 256, least=1), whole(config, "layers", 2, least=1)
    train, valid, test = mnist1d(whole(config, "rows", 1000, least=1), whole(config, "split_seed", 0))
    names = ["input_dropout", *(f"hidden{n}_dropout" for n in range(1, layers + 1))]
    domains: dict[str, Hyperparameter] = {name: Bounded(0.1, low=0.0, high=0.95, search=(0.0, 0.9)) for name in names}
    domains["weight_decay"] = Positive(1e-4, search=(1e-6, 1e-1))
    modules: list[nn.Module] = [Dropout(names[0])]
    sizes = [40, *[width] * layers]
    for before, after, name in zip(sizes, sizes[1:], names[1:], strict=False):
        modules += [nn.Linear(before, after), nn.ReLU(), Dropout(name)]
    return Task(
        space=HyperSpace(**started(domains, config)),
        model=nn.Sequential(*modules, nn.Linear(width, 10)),
        loss=F.cross_entropy,
        train=train,
        valid=valid,
        test=test,
        penalty=L2("weight_decay", biases=False),
    )
