"""Mistakes in data show at once, in one line with the rule, the value got and its name."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from tests.bad_inputs.made import PAIR, X, Y, assert_refused, tuner


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield X[0], Y[0]


class WithoutLength(Dataset):
    def __getitem__(self, index):
        return X[index], Y[index]


class Examples(Dataset):
    """Examples in whatever form `form` gives them."""

    def __init__(self, form, count=24):
        self.form, self.count = form, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.form(X[index], Y[index])


def collated(rows):
    return [torch.stack(part) for part in zip(*rows, strict=True)]


def short(rows):
    x, y = collated(rows)
    return x, y[:-1]


def uneven(rows):
    x, y = collated(rows)
    return {"x": x, "mask": x[:5]}, y


def nothing(rows):
    x, y = collated(rows)
    return x[:0], y[:0]


DATA = {
    "arrays": (
        lambda: tuner(changes={"valid": (X.numpy(), Y.numpy())}),
        TypeError,
        ["`valid`", "a pair of tensors", "got a tuple of ndarray, ndarray", "`torch.from_numpy`"],
    ),
    "empty-tensors": (
        lambda: tuner(changes={"train": (X[:0], Y[:0])}),
        ValueError,
        ["`train`", "at least one", "none"],
    ),
    "empty-validation": (
        lambda: tuner(changes={"valid": (X[:0], Y[:0])}),
        ValueError,
        ["`valid`", "at least one", "none"],
    ),
    "empty-dataset": (
        lambda: tuner(changes={"train": Examples(lambda x, y: (x, y), 0)}),
        ValueError,
        ["`train`", "at least one", "none"],
    ),
    "empty-subset": (
        lambda: tuner(changes={"train": Subset(TensorDataset(*PAIR), [])}),
        ValueError,
        ["`train`", "at least one", "none"],
    ),
    "empty-loader": (
        lambda: tuner(changes={"valid": DataLoader(TensorDataset(*PAIR), 32, drop_last=True)}),
        ValueError,
        ["`valid`", "at least one", "none"],
    ),
    "loader-with-parts-of-different-lengths": (
        lambda: tuner(changes={"test": DataLoader(TensorDataset(*PAIR), 8, collate_fn=short)}),
        ValueError,
        ["`len(x) == len(y)` must hold in each minibatch for 'test', got 7 and 8 (x: 8; y: 7)"],
    ),
    "loader-with-inputs-of-different-lengths": (
        lambda: tuner(changes={"valid": DataLoader(TensorDataset(*PAIR), 8, collate_fn=uneven)}),
        ValueError,
        ["in each minibatch for 'valid', got 5 and 8 (x: 8, 5; y: 8)"],
    ),
    "loader-with-an-empty-minibatch": (
        lambda: tuner(changes={"train": DataLoader(TensorDataset(*PAIR), 8, collate_fn=nothing)}),
        ValueError,
        ["`train` must hold at least one example in each minibatch, got none"],
    ),
    "loader-of-single-examples": (
        lambda: tuner(changes={"train": DataLoader(TensorDataset(*PAIR), batch_size=None)}),
        ValueError,
        ["targets must have an axis of examples in each minibatch for 'train', got none", "`batch_size=None`"],
    ),
    "targets-without-an-axis": (
        lambda: tuner(changes={"train": (X, Y.sum())}),
        ValueError,
        ["targets must have an axis of examples for 'train'"],
    ),
    "different-lengths": (
        lambda: tuner(changes={"test": (X, Y[:-3])}),
        ValueError,
        ["`len(x) == len(y)`", "24", "21", "'test'"],
    ),
    "three-tensors": (lambda: tuner(changes={"train": (X, Y, Y)}), ValueError, ["`train`", "two tensors", "3"]),
    "three-tensors-in-a-dataset": (
        lambda: tuner(changes={"train": TensorDataset(X, Y, Y)}),
        ValueError,
        ["`train`", "two tensors", "3"],
    ),
    "one-tensor": (lambda: tuner(changes={"train": X}), TypeError, ["`train`", "pair of tensors", "Tensor"]),
    "text": (lambda: tuner(changes={"train": "mnist"}), TypeError, ["`train`", "pair of tensors", "str"]),
    "missing-validation": (lambda: tuner(changes={"valid": None}), TypeError, ["`valid`", "NoneType"]),
    "iterable-dataset": (lambda: tuner(changes={"train": Endless()}), TypeError, ["`train`", "map-style", "Endless"]),
    "loader-without-length": (
        lambda: tuner(changes={"train": DataLoader(Endless(), 4)}),
        ValueError,
        ["`train`", "length", "Endless"],
    ),
    "dataset-without-length": (
        lambda: tuner(changes={"train": WithoutLength()}),
        (ValueError, TypeError),
        ["`train`", "length", "WithoutLength"],
    ),
    "triples": (
        lambda: tuner(changes={"valid": Examples(lambda x, y: (x, y, y))}),
        ValueError,
        ["`valid`", "pairs (x, y)", "3"],
    ),
    "triples-to-train-on": (
        lambda: list(tuner(changes={"train": Examples(lambda x, y: (x, y, y))}).fit()),
        ValueError,
        ["`train`", "pairs (x, y)", "3"],
    ),
    "dictionaries": (
        lambda: tuner(changes={"valid": Examples(lambda x, y: {"image": x, "label": y})}),
        (ValueError, TypeError),
        ["`valid`", "pairs (x, y)", "dict"],
    ),
    "inputs-that-are-no-tensors": (
        lambda: tuner(changes={"valid": Examples(lambda x, y: ({"image": x}, y))}),
        TypeError,
        ["`model` must accept its inputs", "got dict with image: ", "unexpected keyword argument"],
    ),
    "inputs-without-a-tensor": (
        lambda: tuner(changes={"valid": Examples(lambda x, y: ({"image": "a picture"}, y))}),
        ValueError,
        ["`valid` must give pairs (x, y) of tensors", "got dict with image"],
    ),
    "dictionaries-without-a-word-about-the-target": (
        lambda: tuner(changes={"valid": Examples(lambda x, y: {"x": x, "y": y})}),
        ValueError,
        ["`valid` must give pairs (x, y)", "got dict with x, y", "`Task(batch=…)`"],
    ),
    "a-key-that-batches-lack": (
        lambda: tuner(changes={"valid": Examples(lambda x, y: {"x": x, "y": y}), "batch": "labels"}),
        ValueError,
        ["`batch` must be a key of each batch", "got 'labels' for "],
    ),
    "a-batch-function-without-a-pair": (
        lambda: tuner(changes={"batch": lambda one: one[0]}),
        ValueError,
        ["`batch` must return a pair (x, y), got Tensor"],
    ),
    "no-key-and-no-function": (
        lambda: tuner(changes={"batch": 3}),
        TypeError,
        ["`batch` must be a key or a function", "got 3"],
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data_are_refused_in_one_line(case):
    assert_refused(*DATA[case])
