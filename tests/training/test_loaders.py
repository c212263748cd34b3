"""Loaders of all kinds: every example once a pass, exact positions, and a clear line for a length that is wrong."""

import gc
import multiprocessing
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

import ray_deltastn as rd
from ray_deltastn.training.data import stream
from tests.training.numbered import COUNT, Generic, numbers, one_pass, same


def make(loader, seed=0, name="train"):
    return stream(loader, 5, name, torch.device("cpu"), seed)


class Flow(IterableDataset):
    """Numbered examples one after the other; `claimed` is the length that it states."""

    def __init__(self, count=COUNT, claimed=None, share=False, noise=False):
        self.count, self.claimed, self.share, self.noise = count, claimed or count, share, noise

    def __len__(self):
        return self.claimed

    def __iter__(self):
        worker = get_worker_info()
        for number in range(self.count):
            if not (self.share and worker) or number // 5 % worker.num_workers == worker.id:
                y = torch.tensor(number)
                yield torch.stack([y.float(), torch.randn(()) * float(self.noise)]), y


class Endless(Flow):
    def __iter__(self):
        while True:
            yield from super().__iter__()


class OwnIterator(IterableDataset):
    """Data that are their own iterator."""

    def __len__(self):
        return COUNT

    def __iter__(self):
        self.place = -1
        return self

    def __next__(self):
        self.place += 1
        if self.place == COUNT:
            raise StopIteration
        return torch.tensor([float(self.place), 0.5]), torch.tensor(self.place)


class Claims(Sampler):
    """Gives `count` entries and states `claimed` as its length."""

    def __init__(self, count, claimed, batches=False):
        self.count, self.claimed, self.batches = count, claimed, batches
        self.passes = 0

    def __len__(self):
        return self.claimed

    def __iter__(self):
        self.passes += 1
        for entry in range(self.count):
            yield [entry * 4 % COUNT, entry * 4 % COUNT + 1] if self.batches else entry % COUNT


# --- numbers of minibatches ------------------------------------------------------------------------------------------

WRONG = {
    "fewer": (lambda: DataLoader(Generic(), 5, sampler=Claims(9, 20)), "got 4 and a pass with 2"),
    "more": (lambda: DataLoader(Generic(), 5, sampler=Claims(20, 9)), "got 2 and a pass with more"),
    "fewer-batches": (lambda: DataLoader(Generic(), batch_sampler=Claims(2, 4, True)), "got 4 and a pass with 2"),
    "more-batches": (lambda: DataLoader(Generic(), batch_sampler=Claims(4, 2, True)), "got 2 and a pass with more"),
}
WRONG_FLOWS = {
    "fewer": (lambda: DataLoader(Flow(9, 20), 5), "got 4 and a pass with 2"),
    "more": (lambda: DataLoader(Flow(20, 9), 5), "got 2 and a pass with more"),
    "empty": (lambda: DataLoader(Flow(0, 20), 5), "got 4 and a pass with 0"),
    "endless": (lambda: DataLoader(Endless(), 5), "got 5 and a pass with more"),
    "whole-data-in-each-worker": (
        lambda: DataLoader(Flow(), 5, num_workers=2, multiprocessing_context="fork"),
        "got 5 and a pass with more; each of the 2 workers must give its share",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_sampler_with_a_wrong_length_is_refused_at_once(case):
    build, got = WRONG[case]
    with pytest.raises(ValueError, match=f"`len.loader.` of `valid` must be the number of its minibatches, {got}"):
        make(build(), name="valid")


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize("order", [one_pass, lambda s: list(s.in_order())], ids=["next", "in_order"])
@pytest.mark.parametrize("case", WRONG_FLOWS)
def test_a_flow_with_a_wrong_length_is_refused_in_its_first_pass(case, order):
    build, got = WRONG_FLOWS[case]
    s = make(build())
    with pytest.raises(ValueError, match=f"`len.loader.` of `train` must be the number of its minibatches, {got}"):
        order(s)


def test_the_sampler_is_asked_without_a_trace():
    sampler = Claims(6, 6, True)
    assert make(DataLoader(Generic(), batch_sampler=sampler)).smallest_batch == 2
    assert sampler.passes == 0


SMALLEST = {
    "subset": (lambda: DataLoader(Generic(), 5, sampler=SubsetRandomSampler(range(12))), 2),
    "weighted": (lambda: DataLoader(Generic(), 5, sampler=WeightedRandomSampler([1.0] * COUNT, 31)), 1),
    "batch-sampler": (lambda: DataLoader(Generic(), batch_sampler=BatchSampler(RandomSampler(Generic()), 5, False)), 3),
    "flow": (lambda: DataLoader(Flow(), 5), 3),
    "flow-without-the-last": (lambda: DataLoader(Flow(), 5, drop_last=True), 5),
    "own-sampler": (lambda: DataLoader(Generic(), 5, sampler=Claims(11, 11)), 1),
}


@pytest.mark.parametrize("case", SMALLEST)
def test_smallest_minibatch(case):
    build, smallest = SMALLEST[case]
    s = make(build())
    assert s.smallest_batch == smallest
    for _ in range(2):
        assert min(len(y) for _, y in one_pass(s)) == smallest


# --- exact positions -------------------------------------------------------------------------------------------------


class OwnNumbers(Generic):
    """Data with generators of their own."""

    def __init__(self):
        super().__init__()
        self.numpy, self.python, self.old = np.random.default_rng(), random.Random(), np.random.RandomState()
        self.torch = torch.Generator()
        self.torch.seed()

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        x[1] += self.numpy.random() + self.python.random() + self.old.rand() + torch.rand((), generator=self.torch)
        return x, y


class OwnOrder(Sampler):
    """A sampler with a generator of its own, as an attribute."""

    def __init__(self):
        self.rng = np.random.default_rng()

    def __len__(self):
        return COUNT

    def __iter__(self):
        return iter(self.rng.permutation(COUNT).tolist())


def held_generator():
    generator = torch.Generator()
    generator.seed()
    return BatchSampler(RandomSampler(Generic(), generator=generator), 5, False)


def workers(data, count=2, **options):
    return DataLoader(data, 5, num_workers=count, multiprocessing_context="fork", **options)


class Repeating(DataLoader):
    """A loader whose iterator goes on from pass to pass, like timm's `MultiEpochsDataLoader`."""

    iterator = None

    def __iter__(self):
        if self.iterator is None:
            self.iterator = self.endless()
        for _ in range(len(self)):
            yield next(self.iterator)

    def endless(self):
        while True:
            yield from super().__iter__()


LOADERS = {
    "flow": lambda: DataLoader(Flow(noise=True), 5),
    "flow-in-workers": lambda: workers(Flow(share=True, noise=True)),
    "flow-in-ready-minibatches": lambda: DataLoader([(torch.ones(3, 2), torch.arange(3))] * 7, batch_size=None),
    "own-iterator": lambda: DataLoader(OwnIterator(), 5),
    "own-numbers": lambda: DataLoader(OwnNumbers(), 5, shuffle=True),
    "own-order": lambda: DataLoader(Generic(noise=True), 5, sampler=OwnOrder()),
    "generator-in-a-batch-sampler": lambda: DataLoader(Generic(), batch_sampler=held_generator()),
    "subset": lambda: DataLoader(Generic(noise=True), 5, sampler=SubsetRandomSampler(range(12))),
    "distributed": lambda: DataLoader(Generic(), 5, sampler=DistributedSampler(Generic(), 1, 0)),
    "persistent-workers": lambda: workers(Generic(noise=True), persistent_workers=True, shuffle=True),
    "repeating": lambda: Repeating(Generic(noise=True), 5, shuffle=True),
    "collated": lambda: DataLoader(
        Generic(noise=True), 5, shuffle=True, collate_fn=lambda rows: [torch.stack(p) for p in zip(*rows, strict=True)]
    ),
}


@pytest.mark.parametrize("taken", [3, 7])
@pytest.mark.parametrize("case", LOADERS)
def test_positions_are_exact(case, taken):
    s, resumed = (make(LOADERS[case]()) for _ in range(2))
    for _ in range(taken):
        s.next()
        list(s.in_order())
    torch.rand(3)
    resumed.load_state_dict(s.state_dict())
    assert same([s.next() for _ in range(9)], [resumed.next() for _ in range(9)])
    assert same(s.in_order(), resumed.in_order())


@pytest.mark.parametrize("case", ["flow", "flow-in-workers", "own-iterator", "distributed", "persistent-workers"])
def test_every_example_once_a_pass(case):
    s = make(LOADERS[case]())
    for _ in range(2):
        assert sorted(numbers(one_pass(s))) == list(range(COUNT))
        assert sorted(numbers(s.in_order())) == list(range(COUNT))


def test_passes_of_a_distributed_sampler_have_different_orders():
    s = make(LOADERS["distributed"]())
    first, second = numbers(one_pass(s)), numbers(one_pass(s))
    assert first != second
    assert sorted(first) == sorted(second)


@pytest.mark.parametrize(
    "build",
    [
        lambda: DataLoader(Generic(noise=True), 5, shuffle=True, generator=torch.Generator()),
        lambda: workers(Generic(noise=True), 1, shuffle=True),
        lambda: workers(Generic(noise=True), 1, shuffle=True, persistent_workers=True),
        lambda: DataLoader(OwnIterator(), 5),
    ],
    ids=["generator", "workers", "persistent-workers", "own-iterator"],
)
def test_two_splits_of_one_loader_are_those_of_two_loaders(build):
    shared = build()
    one = [make(shared, seed, name) for seed, name in enumerate(("train", "valid"))]
    two = [make(build(), seed, name) for seed, name in enumerate(("train", "valid"))]
    for _ in range(7):
        for mine, other in zip(one, two, strict=True):
            assert same([mine.next()], [other.next()])
    assert same(one[1].in_order(), two[1].in_order())


@pytest.mark.parametrize("case", LOADERS)
def test_a_first_look_moves_nothing(case):
    s, other = (make(LOADERS[case]()) for _ in range(2))
    s.next(), other.next()
    x, y = s.first()
    assert len(x) == len(y) == min(4, len(other.next()[1]))
    s.next()
    assert same([s.next() for _ in range(5)], [other.next() for _ in range(5)])


def test_an_iterable_data_set_with_a_length_needs_no_loader():
    s = make(Flow())
    assert [len(y) for _, y in one_pass(s)] == [5, 5, 5, 5, 3]
    assert numbers(s.in_order()) == list(range(COUNT))


# --- what minibatches hold -------------------------------------------------------------------------------------------


class Parts(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.full((4,), float(index)), torch.tensor(index % 3)


class Optional(nn.Module):
    """A model with an input that may be missing."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.out = nn.Linear(4, 5), rd.Dropout("rate"), nn.Linear(5, 3)

    def forward(self, x, shift=None):
        return self.out(self.drop(self.first(x if shift is None else x + shift)))


def changing(name):
    """A loader that adds a part to the inputs of every minibatch whose first example is not below 8."""

    def collate(rows):
        x, y = (torch.stack(part) for part in zip(*rows, strict=True))
        return ({"x": x, name: x} if x[0, 0] >= 8 else {"x": x}), y

    return DataLoader(Parts(), 4, collate_fn=collate)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("method", ["delta-stn", "fixed"])
def test_minibatches_may_change_their_structure_if_the_model_accepts_it(split, method):
    def run(name):
        plain = DataLoader(Parts(), 4, collate_fn=changing("shift").collate_fn, sampler=range(8))
        splits = {"train": plain, "valid": plain, "test": plain, split: changing(name)}
        task = rd.Task(rd.HyperSpace(rate=rd.Bounded(0.2)), Optional(), F.cross_entropy, **splits)
        return list(rd.SelfTuner(task, method, epochs=2, warmup=0, train_interval=1).fit())

    assert not run("shift")[-1]["diverged"]
    with pytest.raises(
        ValueError,
        match=rf"all minibatches of `{split}` must have a structure that the model and the loss accept, got "
        r"\(dict with x, other: .* after \(dict with x: float32 of 2 axes; int64 of 1 axes\), and this error: .*other",
    ) as caught:
        run("other")
    assert "\n" not in str(caught.value)


def test_workers_end_with_their_stream_without_the_garbage_collector():
    gc.collect()
    others = set(multiprocessing.active_children())
    gc.disable()
    try:
        one = make(DataLoader(Generic(), 3, num_workers=2))
        one.next()
        assert len(set(multiprocessing.active_children()) - others) == 2
        del one
        assert not set(multiprocessing.active_children()) - others
    finally:
        gc.enable()
