"""Reading image sets: file layouts, data roots, downloads and error messages."""

import gzip
import io
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ray_deltastn.tasks.cache import user_cache
from ray_deltastn.tasks.image_sets import SETS, load_images

IDX_SETS = ("mnist", "fashion_mnist")
FOLDER = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


@pytest.fixture(autouse=True)
def _no_roots(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_DELTASTN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def values(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_idx(folder, packed):
    """Write the four files of a small set, and return its arrays."""
    folder.mkdir(parents=True)
    arrays = {
        "train-images-idx3-ubyte": values(7, 28, 28),
        "train-labels-idx1-ubyte": values(7) % 10,
        "t10k-images-idx3-ubyte": values(3, 28, 28, seed=1),
        "t10k-labels-idx1-ubyte": values(3, seed=1) % 10,
    }
    for name, array in arrays.items():
        data = idx(array)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    return list(arrays.values())


def assert_split(split, x, y):
    assert split[0].dtype == torch.uint8
    assert split[1].dtype == torch.int64
    assert np.array_equal(split[0].numpy(), x)
    assert np.array_equal(split[1].numpy(), y)


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("own_folder", [True, False])
@pytest.mark.parametrize("name", IDX_SETS)
def test_idx_files_are_read_in_each_layout_and_nothing_is_written(name, own_folder, packed, tmp_path):
    root = tmp_path / "root"
    x, y, test_x, test_y = write_idx((root / name if own_folder else root) / FOLDER[name] / "raw", packed)
    before = contents(root)
    train, test = load_images(name, root)
    assert_split(train, x[:, None], y)
    assert_split(test, test_x[:, None], test_y)
    assert contents(root) == before


def strips(images, labels):
    """A zip of WebP strips, three images each."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        saved = io.BytesIO()
        np.save(saved, labels)
        archive.writestr("labels.npy", saved.getvalue())
        for start in range(0, len(images), 3):
            strip, part = io.BytesIO(), images[start : start + 3]
            Image.fromarray(part.reshape(-1, 32, 3)).save(strip, "WEBP", lossless=True, exact=True)
            archive.writestr(f"images_{start // 3:02d}.webp", strip.getvalue())
    return buffer.getvalue()


def test_cifar10_is_read_from_strips(tmp_path):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    parts = [(values(7, 32, 32, 3, seed=n), values(7, seed=n) % 10) for n in range(6)]
    for n, (x, y) in enumerate(parts):
        (folder / (f"data_batch_{n + 1}.zip" if n < 5 else "test_batch.zip")).write_bytes(strips(x, y))
    train, test = load_images("cifar10", tmp_path)
    x, y = (np.concatenate(part) for part in zip(*parts[:5], strict=True))
    assert_split(train, x.transpose(0, 3, 1, 2), y)
    assert_split(test, parts[5][0].transpose(0, 3, 1, 2), parts[5][1])
    (folder / "test_batch.zip").write_bytes(strips(parts[0][0], parts[0][1][:5]))
    with pytest.raises(ValueError, match=r"test_batch.zip` must hold as many labels as images, got 5 and 7"):
        load_images("cifar10", tmp_path)


@pytest.mark.parametrize("own_folder", [True, False])
def test_cifar10_is_read_from_torchvisions_files_by_torchvision(own_folder, tmp_path, monkeypatch):
    home = tmp_path / "cifar10" if own_folder else tmp_path
    (home / "cifar-10-batches-py").mkdir(parents=True)
    (home / "cifar-10-batches-py" / "data_batch_1").touch()

    class Pickled:
        def __init__(self, root, train, download=False):
            assert root == home
            assert not download
            self.data, self.targets = values(5 if train else 2, 32, 32, 3), [1] * (5 if train else 2)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Pickled)
    train, test = load_images("cifar10", tmp_path)
    assert_split(train, values(5, 32, 32, 3).transpose(0, 3, 1, 2), [1] * 5)
    assert_split(test, values(2, 32, 32, 3).transpose(0, 3, 1, 2), [1] * 2)


def test_the_argument_takes_precedence_over_the_environment(tmp_path, monkeypatch):
    write_idx(tmp_path / "here" / "MNIST" / "raw", packed=True)
    monkeypatch.setenv("RAY_DELTASTN_DATA", str(tmp_path / "nowhere"))
    assert len(load_images("mnist", tmp_path / "here")[0][0]) == 7
    with pytest.raises(FileNotFoundError, match=r"\$RAY_DELTASTN_DATA = .*nowhere"):
        load_images("mnist")
    monkeypatch.setenv("RAY_DELTASTN_DATA", str(tmp_path / "here"))
    assert len(load_images("mnist")[0][0]) == 7


@pytest.mark.parametrize("name", SETS)
def test_the_error_for_a_missing_set_names_the_files_and_the_download(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_images(name, tmp_path)
    text = str(error.value)
    assert f"`{name}` must be under `data_root` = {tmp_path}" in text
    for _, file in [(None, form[0]) for form in SETS[name].forms]:
        assert str(tmp_path / name / file) in text
        assert str(tmp_path / file) in text
    assert f"torchvision.datasets.{SETS[name].torchvision}('{tmp_path / name}', download=True)" in text
    assert "\n" not in text
    assert not list(tmp_path.iterdir())  # no download into a root that was given


def test_without_a_root_the_set_is_downloaded_into_the_cache_once(monkeypatch, tmp_path):
    downloads = []

    def download(root, download):
        downloads.append(root)
        write_idx(root / "FashionMNIST" / "raw", packed=False)

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    for _ in range(2):
        assert len(load_images("fashion_mnist")[0][0]) == 7
    assert len(downloads) == 1
    assert user_cache() == tmp_path / "cache" / "ray_deltastn"
    assert [path.name for path in user_cache().iterdir()] == ["fashion_mnist"]


def test_a_failed_download_leaves_no_files_and_gives_the_reason(monkeypatch):
    def download(root, download):
        (root / "half").touch()
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    with pytest.raises(FileNotFoundError, match=r"or come from the network, got: Error downloading.*data_root"):
        load_images("mnist")
    assert not list(user_cache().iterdir())


def test_a_download_is_dropped_if_another_process_finished_first(monkeypatch):
    def download(root, download):
        write_idx(root / "MNIST" / "raw", packed=False)
        write_idx(user_cache() / "mnist" / "MNIST" / "raw", packed=True)

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    assert len(load_images("mnist")[0][0]) == 7
    assert [path.name for path in user_cache().iterdir()] == ["mnist"]


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"\x00\x00\x0d" + d[3:], lambda d: d[:9]]
)
def test_a_damaged_file_is_named(damage, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, packed=False)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte` must be an IDX file of bytes, got"):
        load_images("mnist", tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_the_error_for_a_missing_file_names_it_and_the_download(packed, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, packed)
    next(folder.glob("t10k-labels*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte.gz` must exist, got no such file; download"):
        load_images("mnist", tmp_path)


def test_a_damaged_gzip_file_is_named(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, packed=True)
    for name, damage in (
        ("train-images-idx3-ubyte.gz", lambda d: d[:-9]),
        ("t10k-labels-idx1-ubyte.gz", lambda d: b"x"),
    ):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(damage(good))
        with pytest.raises(ValueError, match=rf"{name}` must be an undamaged gzip file, got: "):
            load_images("mnist", tmp_path)
        (folder / name).write_bytes(good)


@pytest.mark.parametrize("content", [b"junk", strips(values(2, 32, 32, 3), values(2))[:-30]], ids=["junk", "torn"])
def test_a_damaged_zip_is_named(content, tmp_path):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "data_batch_1.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_1.zip` must be a zip of WebP strips and `labels.npy`, got: "):
        load_images("cifar10", tmp_path)


def test_incomplete_files_of_torchvision_are_refused(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").touch()
    with pytest.raises(ValueError, match=r"cifar-10-batches-py` must hold undamaged files of cifar10, got: .*download"):
        load_images("cifar10", tmp_path)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"`name` must be one of mnist, fashion_mnist, cifar10, got 'svhn'"):
        load_images("svhn")


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "first"),
    [
        ("mnist", (60_000, 10_000), (1, 28, 28), [5, 0, 4, 1, 9]),
        ("fashion_mnist", (60_000, 10_000), (1, 28, 28), [9, 0, 0, 3, 0]),
        ("cifar10", (50_000, 10_000), (3, 32, 32), [6, 9, 9, 4, 1]),
    ],
)
def test_the_real_sets_have_the_known_sizes_and_labels(name, sizes, shape, first, monkeypatch, real_images):
    train, test = load_images(name, real_images)
    for (x, y), size in zip((train, test), sizes, strict=True):
        assert x.shape == (size, *shape)
        assert x.dtype == torch.uint8
        assert y.shape == (size,)
        counts = torch.bincount(y, minlength=10)
        assert counts.tolist() == [size // 10] * 10 if name != "mnist" else counts.min() > 0.08 * size
    assert train[1][:5].tolist() == first
