"""Runs on two workers, for the tests.

`python -m torch.distributed.run --nproc-per-node 2 -m tests.training.two_workers DIR` starts them. Each writes what it
has found, by the name of the scenario, to `DIR/RANK.pt`.
"""

import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import ray_deltastn as rd
from ray_deltastn.training.segments import SegmentStream
from ray_deltastn.training.streams import Stream
from tests.training import recurrent
from tests.training.runs import Noisy, examples, make_task, make_tuner, reports_of, tensors_of

#: Options of the runs without noise. The last minibatch of `ROWS` training examples has one example.
ROWS = 61
#: Pairs ±ε are a variant: a worker draws half of its own rows, and not of the minibatch.
EXACT = {
    "batch_size": 15,
    "epochs": 2,
    "warmup_steps": 2,
    "train_interval": 2,
    "valid_batch_size": 11,
    "antithetic": False,
}
VARIANTS = {
    "paper": {"preset": "paper"},
    "recommended": {},
    "clipped": {"preset": "paper", "clip_grad": 0.05},
    "parts": {"preset": "paper", "perturbations": 2},
    "pairs": {"antithetic": True, "batch_size": 16},
    "adam": {"optimizer": "adam", "response_optimizer": "adam", "hyper_optimizer": "adam"},
    "plateau": {"schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "threshold": 0.5}, "epochs": 3},
    "segments": {"preset": "paper"},
}
#: Method and options of each run without noise.
RUNS = [
    *((method, "paper") for method in ("fixed", "stn", "centered-stn", "delta-stn")),
    *(("delta-stn", name) for name in VARIANTS if name != "paper"),
    ("stn", "segments"),
]


class Fading(rd.Regularizer):
    """Inputs times one minus the value, without noise."""

    def __init__(self, name):
        super().__init__(name)

    def forward(self, x):
        return x * (1 - self.pass_values.value(self.names[0], x)) if self.training else x


def exact_space():
    return rd.HyperSpace(
        fading=rd.Bounded(0.3, low=0.0, high=0.9, scale=0.3),
        shared=rd.Bounded(0.2, low=0.0, high=0.9, scale=0.3, per="batch"),
        decay=rd.Positive(1e-2),
    )


class FadingModel(nn.Module):
    """A recurrent network that carries state and draws nothing."""

    def __init__(self):
        super().__init__()
        self.recurrent = recurrent.GRUModel(dropout=False)
        self.recurrent.before = Fading("fading")
        self.after = Fading("shared")

    def forward(self, tokens, state):
        output, state = self.recurrent(tokens, state)
        return self.after(output), state


def segments_task():
    """A task on segments, of which a worker has two streams or one, or, in the test data, none."""
    torch.manual_seed(7)
    state = recurrent.first_state("gru", torch.float64)
    sizes = {"train": (130, 3), "valid": (70, 2), "test": (40, 1)}
    data = {
        name: rd.Segments(recurrent.corpus(count, seed), streams, 8, state)
        for seed, (name, (count, streams)) in enumerate(sizes.items())
    }
    return rd.Task(
        space=exact_space(), model=FadingModel().double(), loss=F.cross_entropy, penalty=rd.L2("decay"), **data
    )


def exact_task(seed=11, **changes):
    """A task in float64 whose passes draw nothing."""
    torch.manual_seed(seed)
    space = exact_space()
    layers = (Fading("fading"), nn.Linear(6, 8), nn.Tanh(), Fading("shared"), nn.Linear(8, 3))
    x, y = examples(ROWS, 1)
    given = {
        "train": (x.double(), y),
        "valid": tuple(t.double() if t.is_floating_point() else t for t in examples(40, 2)),
        "test": tuple(t.double() if t.is_floating_point() else t for t in examples(1, 3)),
        "penalty": rd.L2("decay"),
        "metrics": {
            "margin": lambda output, y: output.amax(1),
            "largest": rd.over_split(lambda output, y: output.max()),
        },
        **changes,
    }
    return rd.Task(space=space, model=nn.Sequential(*layers).double(), loss=F.cross_entropy, **given)


def first_halves(workers, count):
    """The first half of the rows of each of two workers in a minibatch; one worker alone has both."""
    shares = [range(count // 2), range(count // 2, count)]
    own = shares if workers.size == 1 else [shares[workers.rank]]
    return [row for share in own for row in share[: len(share) // 2]]


def draw_alike(tuner):
    """Make the perturbations those of one worker: each draws them for the whole minibatch, and takes its rows."""
    generator = torch.Generator().manual_seed(3)
    seen = {}

    def watch(stream):
        whole = stream.whole
        of = stream if isinstance(whole, SegmentStream) else whole
        draw = of.next

        def next_batch():
            x, y = draw()
            seen["rows"] = len(y) if of is whole else whole.smallest_batch
            return x, y

        of.next = next_batch

    watch(tuner.train)
    watch(tuner.valid)

    def sample(rows, antithetic=False):
        own = tuner.workers.own(seen["rows"])
        own = own if own.stop > own.start else slice(0, 1)
        if antithetic:
            z = torch.randn(seen["rows"], len(tuner.space), generator=generator, dtype=torch.float64)
            half = z[first_halves(tuner.workers, seen["rows"])]
            z = torch.cat([half, -half]).index_fill(1, torch.tensor([1]), z[0, 1].item())
            return tuner.space.scale * z
        copies = rows // (own.stop - own.start)
        z = torch.randn(copies, seen["rows"], len(tuner.space), generator=generator, dtype=torch.float64)
        z[..., 1] = z[0, 0, 1]
        return tuner.space.scale * z[:, own].flatten(0, 1)

    def window(x, y, kept):
        chosen = torch.tensor(first_halves(tuner.workers, seen["rows"])) - tuner.workers.own(seen["rows"]).start
        assert len(chosen) == kept
        return x[chosen], y[chosen]

    tuner.objective.sample = sample
    if tuner.settings.antithetic:
        tuner.algorithm._window = window


def watch_moves(tuner):
    """The gradients that the optimisers get, move by move."""
    steps, found = tuner.algorithm, []
    move = steps._move

    def noted(optimizer, parameters, gradients, most):
        found.append([g.clone() for g in gradients if g is not None])
        move(optimizer, parameters, gradients, most)

    steps._move = noted
    return found


def exact_run(method, variant, workers=None, **changes):
    """Gradients, reports and tensors of a run without noise."""
    if variant == "pairs":
        x, y = examples(64, 1)  # whole minibatches
        changes |= {"train": (x.double(), y)}
    task = segments_task() if variant == "segments" else exact_task(**changes)
    tuner = make_tuner(task, method, workers=workers, **{**EXACT, **VARIANTS[variant]})
    draw_alike(tuner)
    gradients = watch_moves(tuner)
    return {"reports": reports_of(tuner), "tensors": tensors_of(tuner), "gradients": gradients}


def noisy_segments(_):
    """A task on segments with dropout, of which each worker has two streams or one."""
    state = recurrent.first_state("lstm")
    data = {
        name: rd.Segments(recurrent.corpus(130, seed), 4 - 2 * seed, 8, state)
        for seed, name in enumerate(["train", "valid"])
    }
    return recurrent.make_task("lstm", **data)


def noisy_run(workers, method="delta-stn", data="noisy-loader", build=make_task, **settings):
    """A run with noise, whole and broken, with the state in its middle."""
    tuner = make_tuner(build(data), method, workers=workers, **settings)
    whole = reports_of(tuner)
    first = make_tuner(build(data), method, workers=workers, **settings)
    begun = [first.step(), first.step()]
    state = first.state_dict()
    torch.manual_seed(1000 + workers.rank)  # a resumed run depends on nothing else
    second = make_tuner(build(data), method, workers=workers, **settings)
    second.load_state_dict(state)
    return {
        "whole": whole,
        "broken": [report["valid_loss"] for report in begun] + [report["valid_loss"] for report in reports_of(second)],
        "tensors": tensors_of(tuner),
        "resumed": tensors_of(second),
        "generator": tuner.generator.get_state(),
        "state": state,
    }


def normalised_model():
    torch.manual_seed(5)
    return nn.Sequential(rd.Dropout("first"), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def normalised_run(workers):
    """Running statistics before and after a step, and the rows of this worker in the step."""
    space = rd.HyperSpace(first=rd.Bounded(0.0, low=0.0, high=0.9), decay=rd.Positive(1e-3))
    task = make_task(space=space, model=normalised_model())
    tuner = make_tuner(task, "fixed", workers=workers, batch_size=10, lr=1e-3)
    drawn = []
    following = tuner.train.next
    tuner.train.next = lambda: drawn.append(following()) or drawn[-1]
    model = normalised_model()
    tuner._train_step()
    own = tuner.model[2].running_mean.clone()
    tuner._share_buffers()
    expected = 0.1 * model[1](drawn[0][0]).mean(0).detach()
    return {"own": own, "expected": expected, "shared": tuner.model[2].running_mean.clone()}


def rows_of(stream: Stream, count):
    return [stream.next() for _ in range(count)]


def loaders(workers):
    """Rows of this worker in the minibatches of loaders."""
    data = TensorDataset(torch.arange(23.0)[:, None].repeat(1, 6), torch.zeros(23, dtype=torch.long))
    found = {}
    sampler = DistributedSampler(data, num_replicas=2, rank=workers.rank, shuffle=True)
    kinds = {
        "loader": DataLoader(data, batch_size=5, shuffle=True),
        "sampled": DataLoader(data, batch_size=5, sampler=sampler),
        "noisy": DataLoader(Noisy(*examples(23, 4)), batch_size=5, shuffle=True),
    }
    for name, loader in kinds.items():
        tuner = make_tuner(make_task(train=loader), workers=workers)
        found[name] = [x[:, 0].tolist() for x, _ in rows_of(tuner.train, len(tuner.train) + 1)]
        found[name + " in order"] = [x[:, 0].tolist() for x, _ in tuner.train.in_order()]
    return found


class Odd(nn.Module):
    """A model of which one worker trains another part."""

    def __init__(self, rank):
        super().__init__()
        self.rank, self.dropout = rank, rd.Dropout("first")
        self.parts = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])

    def forward(self, x):
        return self.parts[self.rank if self.training else 0](self.dropout(x))


def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def changed_weights(tuner, rank):
    tuner.step()
    if rank == 1:
        with torch.no_grad():
            tuner.model[1].weight[0, 0] += 1
    tuner.step()


def errors(workers):
    """What is refused."""
    rank = workers.rank

    def of(*layers):
        return make_task(model=nn.Sequential(*layers), space=rd.HyperSpace(decay=rd.Positive(1e-3)))

    embedding = of(nn.Embedding(9, 3, sparse=True), nn.Flatten(), nn.Linear(18, 3))
    synchronised = of(nn.Linear(6, 8), nn.SyncBatchNorm(8), nn.Linear(8, 3))
    normalised = of(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    odd = make_task(model=Odd(rank), space=rd.HyperSpace(first=rd.Bounded(0.2, low=0.0, high=0.9)), penalty=())
    wrong = DistributedSampler(range(100), num_replicas=4, rank=0)
    sampled = DataLoader(TensorDataset(*examples(100, 1)), batch_size=5, sampler=wrong)
    first = rd.Bounded(0.2, low=0.0, high=0.9)
    pair = {"second": first, "decay": rd.Positive(1e-3)}
    domain = rd.HyperSpace(first=rd.Bounded(0.2, low=0.0, high=0.9 - 0.4 * rank), **pair)
    more = {"more": rd.Positive(1e-3)} if rank else {}
    longer = rd.HyperSpace(first=first, **pair, **more)
    penalties = [rd.L2(name) for name in ("decay", *more)]
    measured = {"margin": lambda output, y: output.amax(1)} if rank else {}
    narrow = recurrent.make_task(train=rd.Segments(recurrent.corpus(130), 1, 8, recurrent.first_state("lstm")))
    return {
        "ift": error_of(lambda: make_tuner(of(nn.Linear(6, 3)), "ift", workers=workers)),
        "graph": error_of(lambda: make_tuner(workers=workers, graph="on")),
        "sparse": error_of(lambda: make_tuner(embedding, workers=workers)),
        "synchronised": error_of(lambda: make_tuner(synchronised, workers=workers)),
        "settings": error_of(lambda: make_tuner(workers=workers, lr=0.1 + rank)),
        "data": error_of(lambda: make_tuner(make_task(train=examples(100, rank)), workers=workers)),
        "length": error_of(lambda: make_tuner(make_task(train=examples(100 + 20 * rank, 1)), workers=workers)),
        "domain": error_of(lambda: make_tuner(make_task(space=domain), workers=workers)),
        "more": error_of(lambda: make_tuner(make_task(space=longer, penalty=penalties), workers=workers)),
        "metrics": error_of(lambda: make_tuner(make_task(metrics=measured), workers=workers)),
        "identity": error_of(lambda: make_tuner(make_task(identity={"text": str(rank)}), workers=workers)),
        "streams": error_of(lambda: make_tuner(narrow, workers=workers)),
        "sampler": error_of(lambda: make_tuner(make_task(train=sampled), workers=workers)),
        "few rows": error_of(lambda: make_tuner(normalised, workers=workers, batch_size=33)),
        "odd": error_of(lambda: make_tuner(odd, "fixed", workers=workers).step()),
        "weights": error_of(lambda: changed_weights(make_tuner(workers=workers), rank)),
    }


def main(folder):
    warnings.simplefilter("ignore", rd.RunWarning)
    torch.set_num_threads(1)
    with rd.Workers.join(timeout=60) as workers:
        found = {f"{method} {variant}": exact_run(method, variant, workers) for method, variant in RUNS}
        found["other start"] = exact_run("delta-stn", "paper", workers, seed=11 + 50 * workers.rank)["tensors"]
        found["noise"] = noisy_run(workers)
        found["segments noise"] = noisy_run(workers, build=noisy_segments, steps_per_report=1)
        found["plain noise"] = noisy_run(workers, data="plain-dropout", patience=1)
        found["normalised"] = normalised_run(workers)
        found["loaders"] = loaders(workers)
        found["errors"] = errors(workers)
        found["diverged"] = reports_of(make_tuner(make_task(), workers=workers, lr=1e6))
        hasty = rd.Workers(dist.new_group(timeout=timedelta(seconds=1)))
        found["late"] = "" if workers.rank else error_of(lambda: hasty.gathered(0))
        workers.gathered(0)
        torch.save(found, Path(folder, f"{workers.rank}.pt"))


if __name__ == "__main__":
    main(sys.argv[1])
