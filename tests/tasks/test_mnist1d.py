"""MNIST-1D: the splits, the cache and the options of the ready task."""

import random
import sys

import numpy as np
import pytest
import torch

from ray_deltastn.tasks import build_task
from ray_deltastn.tasks.mnist1d import SIGNALS, TEST, VALID, mnist1d

pytest.importorskip("mnist1d")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder with the signals. Generating them takes seconds and leaves the global random numbers alone."""
    folder = tmp_path_factory.mktemp("cache")
    before = random.getstate(), np.random.get_state()[1].copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        mnist1d()
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    return folder


@pytest.fixture(autouse=True)
def in_cache(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def test_splits_do_not_overlap_and_have_all_classes():
    (x, y), (valid_x, valid_y), (test_x, test_y) = mnist1d(rows=4500)
    assert (len(x), len(valid_x), len(test_x)) == (SIGNALS - VALID - TEST, VALID, TEST)
    rows = {tuple(row) for row in torch.cat([x, valid_x, test_x]).tolist()}
    assert len(rows) == SIGNALS
    for labels in (y, valid_y, test_y):
        assert labels.unique().tolist() == list(range(10))
    assert x.shape[1] == 40
    assert x.dtype == torch.float32


def test_another_number_of_rows_keeps_the_other_splits():
    small, large = mnist1d(rows=100), mnist1d(rows=1000)
    assert torch.equal(small[0][0], large[0][0][:100])
    for part in (1, 2):
        assert torch.equal(small[part][0], large[part][0])
    assert not torch.equal(mnist1d(seed=1)[2][0], large[2][0])


def test_the_signals_are_those_of_the_package(cache):
    from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    arguments.num_samples = SIGNALS
    made = make_dataset(arguments)
    with np.load(cache / "ray_deltastn" / f"mnist1d-{SIGNALS}.npz") as kept:
        np.testing.assert_allclose(kept["x"], np.concatenate([made["x"], made["x_test"]]), rtol=1e-6)
        assert (kept["y"] == np.concatenate([made["y"], made["y_test"]])).all()


def test_a_cached_set_needs_no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    assert len(mnist1d()[0][0]) == 1000


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(ImportError, match=r"`pip install 'ray-deltastn\[tasks\]'`"):
        mnist1d()


def test_options_of_the_task():
    task = build_task({"task": "mnist1d-mlp", "rows": 300, "width": 16, "layers": 3, "split_seed": 2})
    assert len(task.train[0]) == 300
    assert task.space.names == (
        "input_dropout",
        "hidden1_dropout",
        "hidden2_dropout",
        "hidden3_dropout",
        "weight_decay",
    )
    sizes = [(m.in_features, m.out_features) for m in task.model.modules() if isinstance(m, torch.nn.Linear)]
    assert sizes == [(40, 16), (16, 16), (16, 16), (16, 10)]
    assert task.space.values().tolist() == pytest.approx([0.1] * 4 + [1e-4], rel=1e-5)
    with pytest.raises(ValueError, match=r"`rows <= 4500` must hold, got 5000"):
        build_task({"task": "mnist1d-mlp", "rows": 5000})
    with pytest.raises(ValueError, match="`layers` must be a whole number >= 1, got 0"):
        build_task({"task": "mnist1d-mlp", "layers": 0})
