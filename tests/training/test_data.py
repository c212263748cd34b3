"""Streams of minibatches: every example once a pass, an order that is a function of (seed, pass), exact positions."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from ray_deltastn.training.data import LoaderStream, TensorStream, stream
from tests.training.numbered import COUNT, Generic, numbered, numbers, one_pass, same

CPU = torch.device("cpu")


def seeded_loader(batch_size=5, workers=0, noise=False, **options):
    generator = torch.Generator().manual_seed(random.randrange(2**40))
    context = "fork" if workers else None
    return DataLoader(
        Generic(noise=noise),
        batch_size,
        shuffle=True,
        generator=generator,
        num_workers=workers,
        multiprocessing_context=context,
        **options,
    )


SOURCES = {
    "tensors": numbered,
    "list": lambda: list(numbered()),
    "tensor-dataset": lambda: TensorDataset(*numbered()),
    "subset": lambda: Subset(TensorDataset(*numbered(40)), list(range(COUNT))),
    "subset-of-subset": lambda: Subset(Subset(TensorDataset(*numbered(40)), range(30)), range(COUNT)),
    "generic": Generic,
    "generic-noise": lambda: Generic(noise=True),
    "subset-of-generic": lambda: Subset(Generic(40), range(COUNT)),
    "concatenation": lambda: ConcatDataset([Subset(Generic(), range(7)), Subset(Generic(), range(7, COUNT))]),
    "loader": lambda: DataLoader(Generic(), 5, shuffle=True),
    "loader-noise": lambda: DataLoader(Generic(noise=True), 5, shuffle=True),
    "loader-generator": seeded_loader,
    "loader-generator-noise": lambda: seeded_loader(noise=True),
    "loader-batch-sampler": lambda: DataLoader(
        Generic(), batch_sampler=BatchSampler(RandomSampler(Generic()), 5, drop_last=False)
    ),
}
EVERY = pytest.mark.parametrize("source", SOURCES)


def make(source, seed=0, batch_size=5):
    return stream(SOURCES[source]() if isinstance(source, str) else source, batch_size, "train", CPU, seed)


# --- passes ----------------------------------------------------------------------------------------------------------


@EVERY
def test_each_pass_visits_every_example_once(source):
    s = make(source)
    for _ in range(3):
        batches = one_pass(s)
        assert sorted(numbers(batches)) == list(range(COUNT))
        for x, y in batches:
            assert torch.equal(x[:, 0], y.float())


@EVERY
def test_last_minibatch_of_a_pass_is_smaller(source):
    s = make(source)
    assert len(s) == 5
    for _ in range(2):
        assert [len(y) for _, y in one_pass(s)] == [5, 5, 5, 5, 3]
    if source != "loader-batch-sampler":
        assert s.smallest_batch == 3


@pytest.mark.parametrize(("count", "batch", "smallest"), [(20, 5, 5), (21, 5, 1), (3, 5, 3), (5, 5, 5), (4, 1, 1)])
@pytest.mark.parametrize(
    "kind", [lambda n, b: numbered(n), lambda n, b: DataLoader(Generic(n), b), lambda n, b: Generic(n)]
)
def test_smallest_minibatch(kind, count, batch, smallest):
    s = stream(kind(count, batch), batch, "train", CPU, 0)
    assert s.smallest_batch == smallest
    assert min(len(y) for _, y in one_pass(s)) == smallest
    assert len(s) == -(-count // batch)


def test_dropped_last_minibatch_of_a_loader():
    s = make(DataLoader(Generic(), 5, drop_last=True))
    assert len(s) == 4
    assert s.smallest_batch == 5
    assert [len(y) for _, y in one_pass(s)] == [5] * 4


def test_passes_have_different_orders():
    for source in SOURCES:
        s = make(source)
        first, second = numbers(one_pass(s)), numbers(one_pass(s))
        assert first != second
        assert first != list(range(COUNT))


@EVERY
def test_order_is_a_function_of_seed_and_pass(source):
    first, second = make(source, seed=4), make(source, seed=4)
    passes = []
    for number in range(3):
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        passes.append(one_pass(first))
    list(second.in_order())
    for expected in passes:
        torch.rand(3)
        assert same(one_pass(second), expected)
    # A stream that never saw the earlier passes gives the third one too.
    third = make(source, seed=4)
    third.load_state_dict({"pass_number": 2, "position": 0})
    assert same(one_pass(third), passes[2])


@EVERY
def test_another_seed_gives_another_order(source):
    assert numbers(one_pass(make(source, seed=1))) != numbers(one_pass(make(source, seed=2)))


def test_order_of_tensors_does_not_depend_on_the_batch_size():
    assert numbers(one_pass(make("tensors", batch_size=4))) == numbers(one_pass(make("tensors", batch_size=9)))


def test_tensors_of_a_subset_are_those_of_its_indices():
    chosen = [7, 3, 3, 30]
    s = make(Subset(TensorDataset(*numbered(40)), chosen), batch_size=2)
    assert isinstance(s, TensorStream)
    assert sorted(numbers(one_pass(s))) == sorted(chosen)
    assert numbers(s.in_order()) == chosen


def test_random_split_stays_tensors():
    parts = random_split(TensorDataset(*numbered(40)), [30, 10], generator=torch.Generator().manual_seed(0))
    streams = [make(part) for part in parts]
    assert all(isinstance(s, TensorStream) for s in streams)
    assert sorted(numbers(one_pass(streams[0])) + numbers(one_pass(streams[1]))) == list(range(40))


def test_global_generators_are_left_alone():
    for source in SOURCES:
        s = make(source)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        for _ in range(7):
            s.next()
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])


# --- evaluation ------------------------------------------------------------------------------------------------------


@EVERY
def test_evaluation_visits_every_example_once(source):
    s = make(source)
    s.next()
    assert sorted(numbers(s.in_order())) == list(range(COUNT))


def test_evaluation_of_tensors_is_in_order_and_in_large_batches():
    s = make(numbered(2500), batch_size=7)
    batches = list(s.in_order())
    assert [len(y) for _, y in batches] == [1000, 1000, 500]
    assert numbers(batches) == list(range(2500))


def test_evaluation_does_not_move_the_stream():
    for source in SOURCES:
        s, undisturbed = make(source), make(source)
        for _ in range(8):
            assert same([s.next()], [undisturbed.next()])
            list(s.in_order())
        assert s.state_dict() == undisturbed.state_dict()


@EVERY
def test_evaluating_twice_sees_the_same_minibatches(source):
    s = make(source)
    first = list(s.in_order())
    torch.rand(3)
    for _ in range(3):
        s.next()
    assert same(s.in_order(), first)


@EVERY
def test_evaluation_leaves_the_global_generators_alone(source):
    s = make(source)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    list(s.in_order())
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


# --- positions -------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("taken", [0, 1, 4, 5, 6, 12])
def test_position_round_trip(source, taken):
    s = make(source)
    for _ in range(taken):
        s.next()
    state = s.state_dict()
    assert set(state) == {"pass_number", "position"}
    assert all(type(value) is int for value in state.values())
    expected = [s.next() for _ in range(7)]
    resumed = make(source)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert same([resumed.next() for _ in range(7)], expected)


def test_position_can_be_set_back_in_the_same_stream():
    for source in SOURCES:
        s = make(source)
        s.next()
        state = s.state_dict()
        expected = [s.next() for _ in range(8)]
        s.load_state_dict(state)
        assert same([s.next() for _ in range(8)], expected)


def test_resumed_loader_reads_only_the_minibatches_before_its_position():
    class Counting(Generic):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index)

    data = Counting()
    s = make(DataLoader(data, 5, shuffle=True))
    s.load_state_dict({"pass_number": 50, "position": 3})
    assert data.read == 0
    s.next()
    assert data.read == 20


def test_samplers_that_draw_while_they_go_resume_exactly():
    data = Generic()
    for sampler in (
        lambda: RandomSampler(data, replacement=True, num_samples=100),
        lambda: RandomSampler(data, replacement=True, num_samples=100, generator=torch.Generator()),
        lambda: WeightedRandomSampler([1.0] * COUNT, 100),
    ):
        s, resumed = (make(DataLoader(data, 5, sampler=sampler())) for _ in range(2))
        for _ in range(9):
            s.next()
        resumed.load_state_dict(s.state_dict())
        assert same([s.next() for _ in range(20)], [resumed.next() for _ in range(20)])


# --- worker processes ------------------------------------------------------------------------------------------------


def test_worker_processes_change_nothing():
    alone, workers = make(seeded_loader()), make(seeded_loader(workers=2))
    assert same([alone.next() for _ in range(7)], [workers.next() for _ in range(7)])
    assert sorted(numbers(workers.in_order())) == list(range(COUNT))


def test_stream_with_worker_processes_resumes_exactly():
    s, resumed = (make(seeded_loader(workers=2, noise=True)) for _ in range(2))
    for _ in range(3):
        s.next()
    resumed.load_state_dict(s.state_dict())
    assert same([s.next() for _ in range(4)], [resumed.next() for _ in range(4)])


def test_evaluation_with_worker_processes_sees_the_same_minibatches():
    s = make(seeded_loader(workers=1, noise=True))
    first = list(s.in_order())
    s.next()
    assert same(s.in_order(), first)


def test_evaluation_with_persistent_workers_does_not_end_the_pass():
    s = make(seeded_loader(workers=1, persistent_workers=True))
    undisturbed = make(seeded_loader(workers=1, persistent_workers=True))
    for _ in range(3):
        assert same([s.next()], [undisturbed.next()])
        assert sorted(numbers(s.in_order())) == list(range(COUNT))
    assert same([s.next() for _ in range(4)], [undisturbed.next() for _ in range(4)])


# --- where the data lives --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["loader", "generic", "loader-generator"])
def test_minibatches_of_loaders_are_on_the_training_device(source):
    s = stream(SOURCES[source](), 5, "train", torch.device("meta"), 0)
    for x, y in (s.next(), next(s.in_order())):
        assert x.device == y.device == torch.device("meta")


def test_small_tensors_are_moved_to_the_training_device_once():
    s = stream(numbered(), 5, "train", torch.device("meta"), 0)
    assert s.x.device == s.y.device == torch.device("meta")


def test_kinds_of_sources():
    kinds = {source: type(make(source)) for source in SOURCES}
    tensors = {"tensors", "list", "tensor-dataset", "subset", "subset-of-subset"}
    assert kinds == {source: TensorStream if source in tensors else LoaderStream for source in SOURCES}


def test_large_tensors_stay_where_they_are(monkeypatch):
    monkeypatch.setattr("ray_deltastn.training.data.RESIDENT_BYTES", 10)
    s = stream(numbered(), 5, "train", torch.device("meta"), 0)
    assert s.x.device == CPU
    assert s.next()[0].device == torch.device("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams_on_a_gpu_give_the_order_of_the_cpu():
    for source in SOURCES:
        gpu = stream(SOURCES[source](), 5, "train", torch.device("cuda"), 0)
        assert numbers(one_pass(gpu)) == numbers(one_pass(make(source)))
