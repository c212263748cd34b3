"""Numbered examples, and what a stream gives in a pass."""

import random

import numpy as np
import torch
from torch.utils.data import Dataset

COUNT = 23


def numbered(count=COUNT):
    """Examples that carry their own number: x = (number, 0.5), y = number."""
    y = torch.arange(count)
    return torch.stack([y.float(), torch.full((count,), 0.5)], 1), y


class Generic(Dataset):
    """A data set that is no TensorDataset; `noise` adds draws from all global generators."""

    def __init__(self, count=COUNT, noise=False):
        self.x, self.y = numbered(count)
        self.noise = noise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index].clone()
        if self.noise:
            x[1] += torch.randn(()) + random.random() + np.random.rand()
        return x, self.y[index]


def one_pass(s):
    return [s.next() for _ in range(len(s))]


def numbers(batches):
    return torch.cat([y for _, y in batches]).tolist()


def same(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )
