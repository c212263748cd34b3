"""MNIST, FashionMNIST and CIFAR-10 as uint8 tensors, read from a data root or downloaded into the user's cache."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ray_deltastn.tasks.cache import ROOT_VARIABLE, absolute, user_cache

#: Images (n, C, H, W) in uint8, and labels (n,) in int64.
Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Set:
    """The places of a set under a root, and the readers of its file formats.

    Attributes:
        folder: folder of the set under the root.
        forms: pairs of a file that identifies a format and the reader of the folder with this file.
        torchvision: name of the torchvision class that downloads the set.
    """

    folder: str
    forms: tuple[tuple[str, Callable[[Path], tuple[Split, Split]]], ...]
    torchvision: str


def load_images(name: str, root: str | os.PathLike[str] | None = None) -> tuple[Split, Split]:
    """Training and test split of a set.

    The data root is `root` if given, else the environment variable `RAY_DELTASTN_DATA`, else the user's cache folder
    (`$XDG_CACHE_HOME/ray_deltastn`, by default `~/.cache/ray_deltastn`). torchvision downloads a missing set into the
    cache folder. The function never writes into a root given by the argument or by the variable.

    Args:
        name: `mnist`, `fashion_mnist` or `cifar10`. It is also the folder of the set under the root. torchvision's
            file layouts may be in this folder or directly in the root. CIFAR-10 may also be zips of WebP strips.
        root: the data root.

    Returns:
        Two pairs (x, y): images (n, C, H, W) in uint8, labels (n,) in int64.

    Raises:
        ValueError: if the name is unknown or a file is damaged.
        FileNotFoundError: if the set is missing. The message names the files that were looked for and the command that
            downloads them.
    """
    if name not in SETS:
        raise ValueError(f"`name` must be one of {', '.join(SETS)}, got {name!r}")
    given = root or os.environ.get(ROOT_VARIABLE)
    home = absolute(given) if given else user_cache()
    found = _read(SETS[name], home)
    if found is None and not given:
        _download(SETS[name], home)
        found = _read(SETS[name], home)
    if found is None:
        looked = " or ".join(str(place / file) for place, file, _ in _places(SETS[name], home))
        where = "`data_root`" if root else f"${ROOT_VARIABLE}"
        raise FileNotFoundError(
            f"`{name}` must be under {where} = {home}, looked for {looked}; download it with "
            f"`torchvision.datasets.{SETS[name].torchvision}('{home / SETS[name].folder}', download=True)`, or give no "
            f"root to download it into {user_cache()}"
        )
    return found


def _places(images: _Set, home: Path) -> list[tuple[Path, str, Callable[[Path], tuple[Split, Split]]]]:
    return [(place, file, reader) for file, reader in images.forms for place in (home / images.folder, home)]


def _read(images: _Set, home: Path) -> tuple[Split, Split] | None:
    for place, file, reader in _places(images, home):
        if (place / file).exists():
            return _whole(images, reader, (place / file).parent)
    return None


def _whole(images: _Set, reader: Callable[[Path], tuple[Split, Split]], folder: Path) -> tuple[Split, Split]:
    """Read a folder. If a file is missing or damaged, the error names it."""
    again = f"download the set again with `torchvision.datasets.{images.torchvision}(ROOT, download=True)`"
    try:
        return reader(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"`{error.filename}` must exist, got no such file; {again}") from error
    except (EOFError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"`{folder}` must hold undamaged files of {images.folder}, got: {error}; {again}") from error


def _download(images: _Set, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    # Download into a temporary folder first. Otherwise trials that start at the same time read unfinished files.
    draft = Path(tempfile.mkdtemp(prefix=f".{images.folder}-", dir=home))
    try:
        getattr(torchvision.datasets, images.torchvision)(draft, download=True)
        if not (home / images.folder).exists():
            os.replace(draft, home / images.folder)
    except (OSError, RuntimeError) as error:
        if not (home / images.folder).exists():
            raise FileNotFoundError(
                f"`{images.folder}` must be in {home} or come from the network, got: {error}; if you have a copy, give "
                f"its root as `data_root` or ${ROOT_VARIABLE}"
            ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _mnist(raw: Path) -> tuple[Split, Split]:
    train, test = (
        (_idx(raw / f"{part}-images-idx3-ubyte")[:, None], _idx(raw / f"{part}-labels-idx1-ubyte").long())
        for part in ("train", "t10k")
    )
    return train, test


def _idx(path: Path) -> Tensor:
    """Read an IDX file with or without gzip: two zeros, type 8, number of axes, sizes (big-endian), values."""
    packed = path.with_name(path.name + ".gz")
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"`{packed}` must be an undamaged gzip file, got: {error}") from error
    axes = data[3] if data[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(data, ">u4", axes, 4) if len(data) >= 4 + 4 * axes else np.zeros(1, int)
    if not axes or len(data) != 4 + 4 * axes + shape.prod():
        raise ValueError(f"`{path}` must be an IDX file of bytes, got {len(data)} bytes that begin with {data[:4]!r}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, -1, 4 + 4 * axes).reshape(shape).copy())


def _cifar_strips(folder: Path) -> tuple[Split, Split]:
    parts = [_strips(folder / f"data_batch_{n}.zip") for n in range(1, 6)]
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    return (x, y), _strips(folder / "test_batch.zip")


def _strips(path: Path) -> Split:
    """Read a zip with `labels.npy` and WebP strips of vertically stacked 32×32 images."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
            strips = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
            labels = np.load(io.BytesIO(archive.read("labels.npy")))
        images = np.concatenate(strips).reshape(-1, 32, 32, 3)
    except (zipfile.BadZipFile, zlib.error, UnidentifiedImageError, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"`{path}` must be a zip of WebP strips and `labels.npy`, got: {error}") from error
    if len(images) != len(labels):
        raise ValueError(f"`{path}` must hold as many labels as images, got {len(labels)} and {len(images)}")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long()


def _cifar_batches(folder: Path) -> tuple[Split, Split]:
    sets = [torchvision.datasets.CIFAR10(folder.parent, train=train) for train in (True, False)]
    train, test = (
        (torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets, dtype=torch.long))
        for s in sets
    )
    return train, test


def _raw(name: str) -> tuple[tuple[str, Callable[[Path], tuple[Split, Split]]], ...]:
    return tuple((f"{name}/raw/train-images-idx3-ubyte{packed}", _mnist) for packed in ("", ".gz"))


SETS = {
    "mnist": _Set("mnist", _raw("MNIST"), "MNIST"),
    "fashion_mnist": _Set("fashion_mnist", _raw("FashionMNIST"), "FashionMNIST"),
    "cifar10": _Set(
        "cifar10",
        (("data_batch_1.zip", _cifar_strips), ("cifar-10-batches-py/data_batch_1", _cifar_batches)),
        "CIFAR10",
    ),
}
