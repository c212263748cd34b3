"""Regression data sets of the toy problems: read, split and standardised."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Data:
    """One regression data set, split, and standardised on its training part; all tensors are float64."""

    name: str
    x: Tensor
    t: Tensor
    x_valid: Tensor
    t_valid: Tensor

    @property
    def points(self) -> int:
        """Number of training and validation rows together, which H.1 counts."""
        return len(self.x) + len(self.x_valid)


def load(name: str, data_root: str | os.PathLike[str] | None = None) -> tuple[str, np.ndarray, np.ndarray]:
    """A data set as (short name, X (n, d), y (n,)).

    Args:
        name: `diabetes` (ships with scikit-learn), a file `….npz` with `X` and `y`, or a set in `<data root>/uci/`.
        data_root: the data root; by default the environment variable RAY_DELTASTN_DATA.

    Raises:
        FileNotFoundError: if there is no such set; the message names the path that was tried.
        ValueError: if the file does not contain `X (n, d)` and `y (n,)` of finite numbers.
    """
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        bunch = load_diabetes(scaled=False)
        return name, np.asarray(bunch.data, np.float64), np.asarray(bunch.target, np.float64)
    root = data_root or os.environ.get("RAY_DELTASTN_DATA")
    if name.endswith(".npz"):
        path = Path(name)
        looked = str(path.absolute())
    else:
        path = Path(root or "", "uci", f"{name}.npz")
        looked = str(path) if root else "no path, because neither `--data-root` nor RAY_DELTASTN_DATA is set"
    if not path.is_file() or not (root or name.endswith(".npz")):
        raise FileNotFoundError(
            f"`--data` must be 'diabetes', a file '….npz' with `X` and `y`, or a set in <data root>/uci, got {name!r}; "
            f"tried {looked}"
        )
    rule = f"`{path}` must contain `X (n, d)` and `y (n,)` of finite numbers"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in ("X", "y") if key in arrays}
            names = sorted(arrays)
    except (AttributeError, EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{rule}, got a file that NumPy cannot read: {error}") from None
    if len(found) < 2:
        raise ValueError(f"{rule}, got {names}")
    if any(array.dtype.kind not in "iuf" for array in found.values()):
        raise ValueError(f"{rule}, got X of {found['X'].dtype} and y of {found['y'].dtype}")
    x, y = (array.astype(np.float64) for array in found.values())
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"{rule}, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"{rule}, got NaN or infinity")
    return path.stem, x, y


def split(name: str, x: np.ndarray, y: np.ndarray, seed: int, rows_per_dim: int | None = None) -> Data:
    """Split at random, and standardise on the training part; columns that are constant there are removed.

    Args:
        name: name of the data set, for rows and errors.
        x: features (n, d).
        y: target (n,).
        seed: seed of the split.
        rows_per_dim: k for k·d training rows and up to 200 validation rows; None for 80 % and 20 %.

    Raises:
        ValueError: if there are too few rows, or the target or all features are constant on the training part.
    """
    x = x[:, np.ptp(x, axis=0) > 0]
    order = np.random.default_rng(seed).permutation(len(x))
    training = round(0.8 * len(x)) if rows_per_dim is None else rows_per_dim * x.shape[1]
    rest = len(x) - training if rows_per_dim is None else min(200, len(x) - training)
    if training < 2 or rest < 1:
        raise ValueError(f"`{name}` must have more than {training} rows for this split, got {len(x)}")
    first, second = order[:training], order[training : training + rest]
    used = np.ptp(x[first], axis=0) > 0
    if not used.any() or np.ptp(y[first]) == 0:
        raise ValueError(f"features and target of `{name}` must vary over the training part, got constants")
    x = x[:, used]
    x = (x - x[first].mean(0)) / x[first].std(0)
    y = (y - y[first].mean()) / y[first].std()
    return Data(name, *(torch.from_numpy(np.ascontiguousarray(a)) for a in (x[first], y[first], x[second], y[second])))
