"""Correctness of whole runs: captured steps, resume, memory formats, loaders, and the methods without a response."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ray_deltastn as rd
from benchmarks.gpu.items import Findings, Place, largest_difference
from benchmarks.gpu.networks import data, parts, task
from ray_deltastn.training.capture.graphs import GraphedSteps

#: Train steps of a run on a GPU. Its last minibatch of an epoch is smaller, and its learning rate changes.
STEPS = 200
#: Largest relative difference of weights, Θ, λ and σ between two runs that should be equal. Some kernels add numbers in
#: an order that changes from run to run, such as those of convolutions and of losses of sequences.
SAME = 1e-2
#: The same for networks without such kernels.
EXACT = 1e-4
_EXACT_NETS = ("mlp",)
#: Runs that should be equal may differ by this many times the difference of two eager runs.
TIMES = 10.0
#: Differences of losses are relative to the loss, or to this number if it is larger.
LEAST_LOSS = 0.1
#: Seeds of the check of precisions.
PRECISION_SEEDS = 3


def run(net: str, place: Place, method: Any = "delta-stn", seed: int = 0, **options: Any) -> rd.SelfTuner:
    """A new run with two train steps in a cycle, an epoch of warm-up, a smaller last minibatch, and a falling rate."""
    size = 8 if place.tiny else 64
    train, valid = data(net, 4 * size + size // 2, 1), data(net, 2 * size, 2)
    given: dict[str, Any] = {
        "epochs": 4 if place.tiny else math.ceil(STEPS / 5),
        "batch_size": size,
        "lr": 0.02,
        "warmup": 1,
        "train_interval": 2,
        "schedule": {"name": "step", "step_size": 2 if place.tiny else 10, "gamma": 0.5},
        "device": place.device,
        "seed": seed,
        **options,
    }
    return rd.SelfTuner(task(net, place.tiny, train, valid, seed), method, **given)


def finish(tuner: rd.SelfTuner) -> dict[str, Tensor]:
    """Train to the end, and return all tensors that the run trains."""
    for _ in tuner.fit():
        pass
    return parts(tuner)


def limit_of(net: str) -> float:
    """Largest difference of two equal runs of a network."""
    return EXACT if net in _EXACT_NETS else SAME


def check_graph(net: str, method: str, place: Place, findings: Findings, **options: Any) -> None:
    """Captured steps against eager steps."""
    expected = finish(run(net, place, method, **options))
    captured = run(net, place, method, **options, graph="on")
    found = finish(captured)
    findings.note(steps=captured.steps, loss=captured.last_report["valid_loss"])
    findings.must("captured", isinstance(captured.algorithm, GraphedSteps) and captured.algorithm.captured)
    error, limit = largest_difference(found, expected), limit_of(net)
    if error > limit:  # perhaps two eager runs differ as much
        own = largest_difference(finish(run(net, place, method, **options)), expected)
        findings.note(of_two_eager_runs=own)
        limit = max(limit, TIMES * own)
    findings.at_most("difference", error, limit)


def check_resume(net: str, graph: str, place: Place, findings: Findings) -> None:
    """A run that is saved in the middle, written, read and continued, against one that is not interrupted."""
    whole = run(net, place, graph=graph)
    expected = finish(whole)
    first = run(net, place, graph=graph)
    for _ in range(first.settings.epochs // 2):
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = run(net, place, seed=0, graph=graph)
    second.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    found = finish(second)
    findings.note(to_the_bit=all(torch.equal(found[name], value) for name, value in expected.items()))
    findings.at_most("difference", largest_difference(found, expected), limit_of(net))


def check_channels_last(net: str, place: Place, findings: Findings) -> None:
    """The channels-last memory order against the usual one, after a few steps."""
    found = []
    for channels_last in (False, True):
        tuner = run(net, place, epochs=2, warmup=0, channels_last=channels_last)
        found.append(finish(tuner))
    findings.at_most("difference", largest_difference(found[1], found[0]), SAME)


def check_precision(net: str, place: Place, findings: Findings) -> None:
    """Mean validation losses of whole runs in bfloat16 and TF32, captured, against float32.

    The mean is over `PRECISION_SEEDS` seeds: in a single run rounding errors change λ, and the loss of a short run
    with it.
    """
    losses = {}
    graph = "auto" if place.on_gpu else "off"
    for precision in ("fp32", "tf32", "bf16"):
        total = 0.0
        for seed in range(PRECISION_SEEDS):
            channels_last = net in ("cnn", "resnet18")
            tuner = run(net, place, seed=seed, precision=precision, graph=graph, channels_last=channels_last)
            finish(tuner)
            total += tuner.last_report["valid_loss"]
        losses[precision] = total / PRECISION_SEEDS
    findings.note(loss=losses["fp32"])
    size = max(losses["fp32"], LEAST_LOSS)
    for precision in ("tf32", "bf16"):
        findings.at_most(f"{precision}, loss", abs(losses[precision] - losses["fp32"]) / size, 0.1)


def check_loader(place: Place, findings: Findings) -> None:
    """Captured steps on a `DataLoader` whose thread pins memory, against the same without a capture."""
    size = 8 if place.tiny else 64
    train, valid = data("mlp", 5 * size, 1), data("mlp", 2 * size, 2)
    found = []
    for graph in ("off", "on"):
        loader = DataLoader(
            TensorDataset(*train),
            size,
            shuffle=True,
            num_workers=2 if place.on_gpu else 0,
            pin_memory=place.on_gpu,
            generator=torch.Generator().manual_seed(0),
        )
        made = task("mlp", place.tiny, train, valid)
        made.train = loader
        tuner = rd.SelfTuner(
            made, epochs=4, batch_size=size, warmup=1, train_interval=2, device=place.device, graph=graph
        )
        found.append(finish(tuner))
    findings.at_most("difference", largest_difference(found[1], found[0]), EXACT)


def check_alternatives(method: str, place: Place, findings: Findings) -> None:
    """A method without a response, against the CPU."""
    found = []
    for device in (torch.device("cpu"), place.device):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(784, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10)
        )
        train, valid = ((x.double(), y) for x, y in (data("mlp", 32, 1), data("mlp", 32, 2)))
        made = rd.Task(
            space=rd.HyperSpace(decay=rd.Positive(1e-2)),
            model=model.double(),
            loss=F.cross_entropy,
            train=train,
            valid=valid,
            penalty=rd.L2("decay"),
        )
        options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "warmup": 0, "implicit_damping": 0.1}
        found.append(finish(rd.SelfTuner(made, method, device=device, **options)))  # type: ignore[arg-type]
    findings.at_most("difference", largest_difference(found[1], found[0]), 1e-7)


def check_broken_capture(place: Place, findings: Findings) -> None:
    """A step that cannot be captured: the run continues with eager steps, and the next run can be captured."""
    if not place.on_gpu:
        findings.note(skipped="needs a GPU")
        return
    size = 64
    train, valid = data("mlp", 4 * size, 1), data("mlp", size, 2)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) * (1.0 + 0.0 * output.sum().item())

    def made(graph: Any) -> rd.SelfTuner:
        options: dict[str, Any] = {"epochs": 6, "batch_size": size, "warmup": 1, "train_interval": 2}
        own = task("mlp", place.tiny, train, valid, loss=loss)
        return rd.SelfTuner(own, device=place.device, graph=graph, **options)

    expected = finish(made("off"))
    stream = torch.cuda.current_stream(place.device)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = finish(made("auto"))
    said = [str(w.message) for w in seen if "cannot be captured" in str(w.message)]
    findings.note(warning=said[0] if said else "")
    findings.must("warned", bool(said))
    findings.must("stream as before", torch.cuda.current_stream(place.device) == stream)
    findings.at_most("difference", largest_difference(found, expected), EXACT)
    torch.cuda.empty_cache()  # raises an error while a capture is open
    after = run("mlp", place, graph="on", epochs=4)
    finish(after)
    findings.must("next run is captured", isinstance(after.algorithm, GraphedSteps) and after.algorithm.captured)
