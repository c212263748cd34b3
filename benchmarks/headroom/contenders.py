"""The methods that compete: what each trains, in which order.

A contender yields points as it spends seconds: its total CPU seconds so far, and the losses of the run in hand. Every
contender keeps, at any time, the network with the best validation loss that it has reported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
import pandas as pd
import torch
from torch import Tensor
from torchvision.transforms import v2

import ray_deltastn as rd
from benchmarks.common.record import rounded
from benchmarks.headroom.population import population
from benchmarks.headroom.runs import Clock, Point, Runs
from ray_deltastn.domains import Hyperparameter
from ray_deltastn.regularizers import PassValues

Trace = Iterator[Point]

#: Runs in the pool of random search.
POOL = 16
#: The first points of Optuna's samplers are those of random search, so that searches differ only in what they learn.
SHARED = 4
#: Runs that ASHA may begin: a factor of three, and a ninth of a run at least.
ASHA_RUNS, ASHA_FACTOR, ASHA_SHARE = 64, 3, 1 / 9
#: Hand-made schedule: dropout rates rise linearly to this value.
TOP_RATE = 0.5
#: Share of the epochs of a self-tuned run before a refit, and the budget of search and refit, in plain runs.
SHORTER, BUDGET = 0.7, 4.0
#: Learning rate of the hybrid search, as factors of the shared one, and its range of momentum.
LR_FACTORS, MOMENTA = (0.25, 4.0), (0.5, 0.97)


@dataclass(frozen=True)
class Contender:
    """One method.

    Attributes:
        label: its name in tables.
        trace: function from the runs and the plain run's seconds to its points.
        largest: budget, in plain runs, at which it stops.
    """

    label: str
    trace: Callable[[Runs, float], Trace]
    largest: float = 8.0


def several(runs: Iterator[Iterator[Point]]) -> Trace:
    """Points of runs one after another, with the seconds added up."""
    total = 0.0
    for run in runs:
        last = 0.0
        for point in run:
            last = point.seconds
            yield replace(point, seconds=total + last)
        total += last


def single(name: str, **options: Any) -> Callable[[Runs, float], Trace]:
    """One run with fixed options."""
    return lambda runs, plain: runs.follow(name, **options)


def random_search(runs: Runs, plain: float) -> Trace:
    """`POOL` runs with constants drawn at random."""
    return several(drawn(runs, i) for i in range(POOL))


def drawn(runs: Runs, number: int) -> Iterator[Point]:
    """The run of a proposal of random search."""
    return _constant(runs, f"random-{number}", runs.draw(number))


def _constant(runs: Runs, name: str, values: Mapping[str, float]) -> Iterator[Point]:
    return runs.follow(name, method="fixed", hyperparameters=dict(values))


def schedule(runs: Runs, plain: float) -> Trace:
    """A schedule made by hand: dropout rates rise linearly from 0 to `TOP_RATE`; the rest keep their initial values."""
    epochs = runs.problem.epochs
    rising = [TOP_RATE * i / max(1, epochs - 1) for i in range(epochs)]
    rates = [name for name in runs.space.names if name.startswith("dropout")]
    return runs.follow("schedule", method="fixed", hyperparameters={name: rising for name in rates})


class TrivialAugment:
    """torchvision's TrivialAugment (Müller and Hutter 2021) on each image, without hyperparameters."""

    names: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.transform = v2.TrivialAugmentWide()

    def __call__(self, x: Tensor, pass_values: PassValues) -> Tensor:
        """Images (B, C, H, W) in [0, 1], each changed by one random operation."""
        images = (x * 255).round().to(torch.uint8) if x.is_floating_point() else x
        return torch.stack([self.transform(image) for image in images]).to(torch.get_default_dtype()) / 255


def trivial_augment(runs: Runs, plain: float) -> Trace:
    """The plain run with TrivialAugment, which draws from the global random numbers and cannot be captured."""

    def train() -> Iterator[Point]:
        run = runs.training(Clock(), (TrivialAugment(),), method="fixed", graph="off")
        while not run.done:
            yield run.step()

    return runs.kept("trivial-augment", {**runs.shared, "method": "fixed"}, train)


# --- searches with Optuna ------------------------------------------------------------------------------------------


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def sampled(name: str, make: Callable[[int], optuna.samplers.BaseSampler]) -> Callable[[Runs, float], Trace]:
    """Runs with constants that an Optuna sampler proposes after the first `SHARED` random ones."""

    def trace(runs: Runs, plain: float) -> Trace:
        def each() -> Iterator[Iterator[Point]]:
            _quiet()
            study = optuna.create_study(sampler=make(runs.seed))
            for number in range(POOL):
                if number < SHARED:
                    study.enqueue_trial(_codes(runs.space, runs.draw(number)))
                trial = study.ask(_distributions(runs.space))
                run = f"random-{number}" if number < SHARED else f"{name}-{number}"
                values = runs.draw(number) if number < SHARED else _values(trial.params)
                best = Best()
                yield best.watch(_constant(runs, run, values))
                study.tell(trial, best.valid if math.isfinite(best.valid) else None, state=best.state)

        return several(each())

    return trace


class Best:
    """The best validation loss of a run while it is watched."""

    def __init__(self) -> None:
        self.valid = math.inf

    def watch(self, run: Iterator[Point]) -> Iterator[Point]:
        """The same points."""
        for point in run:
            self.valid = min(self.valid, point.valid)
            yield point

    @property
    def state(self) -> optuna.trial.TrialState:
        """What Optuna is told of the run."""
        finite = math.isfinite(self.valid)
        return optuna.trial.TrialState.COMPLETE if finite else optuna.trial.TrialState.FAIL


def _distributions(space: rd.HyperSpace) -> dict[str, optuna.distributions.BaseDistribution]:
    return {name: _distribution(name, p) for name, p in space.hyperparameters.items()}


def _distribution(name: str, p: Hyperparameter) -> optuna.distributions.BaseDistribution:
    low, high = p.search_range(name)
    if p.integer:
        return optuna.distributions.IntDistribution(int(low), int(high))
    return optuna.distributions.FloatDistribution(low, high, log=p.log_search)


def _codes(space: rd.HyperSpace, values: Mapping[str, float]) -> dict[str, float]:
    """Values as Optuna stores them: whole numbers are integers."""
    return {name: int(v) if space.hyperparameters[name].integer else v for name, v in values.items()}


def _values(parameters: Mapping[str, Any]) -> dict[str, float]:
    return {name: rounded(float(value)) for name, value in parameters.items()}


def asha(runs: Runs, plain: float) -> Trace:
    """Asynchronous successive halving on the draws of random search, by Optuna's pruner."""

    def each() -> Iterator[Iterator[Point]]:
        _quiet()
        least = max(1, round(runs.problem.epochs * ASHA_SHARE))
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=ASHA_FACTOR)
        study = optuna.create_study(pruner=pruner)
        for number in range(ASHA_RUNS):
            trial = study.ask()
            ended = [optuna.trial.TrialState.COMPLETE]
            yield _pruned(drawn(runs, number), trial, ended)
            study.tell(trial, None if ended[0].name == "PRUNED" else _told(trial), state=ended[0])

    return several(each())


def _told(trial: optuna.trial.Trial) -> float:
    reported = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    return float(min(reported.values(), default=math.inf))


def _pruned(run: Iterator[Point], trial: optuna.trial.Trial, ended: list[optuna.trial.TrialState]) -> Iterator[Point]:
    """Points of a run until the pruner stops it; `ended` then holds why."""
    best = math.inf
    for epoch, point in enumerate(run, start=1):
        best = min(best, point.valid)
        yield point
        trial.report(min(best, 1e9), epoch)
        if trial.should_prune():
            ended[0] = optuna.trial.TrialState.PRUNED
            return


# --- self-tuned runs -----------------------------------------------------------------------------------------------


def hybrid(runs: Runs, plain: float) -> Trace:
    """Self-tuned runs whose learning rate and momentum Optuna's Gaussian process proposes; the first has the shared."""
    lr, momentum = runs.shared["lr"], runs.shared["momentum"]
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        "lr": optuna.distributions.FloatDistribution(lr * LR_FACTORS[0], lr * LR_FACTORS[1], log=True),
        "momentum": optuna.distributions.FloatDistribution(*MOMENTA),
    }

    def each() -> Iterator[Iterator[Point]]:
        _quiet()
        study = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=runs.seed, n_startup_trials=2))
        study.enqueue_trial({"lr": lr, "momentum": momentum})
        for number in range(POOL):
            trial = study.ask(distributions)
            best = Best()
            run = "delta-stn" if number == 0 else f"hybrid-{number}"
            options = {} if number == 0 else _values(trial.params)
            yield best.watch(runs.follow(run, method="delta-stn", **options))
            study.tell(trial, best.valid if math.isfinite(best.valid) else None, state=best.state)

    return several(each())


# --- search with a part of the budget, then train on everything ------------------------------------------------------


def self_tuned_refit(runs: Runs, plain: float) -> Trace:
    """A shorter self-tuned run, then the plain network with its schedule on training and validation data.

    The refit has as many train steps as the plain run, so that both together cost at most about four plain runs.
    """
    epochs = max(1, round(SHORTER * runs.problem.epochs))
    points = list(runs.follow("delta-stn-shorter", method="delta-stn", epochs=epochs))
    yield from points
    schedule = pd.DataFrame([point.values for point in points])
    refit = runs.refit(
        "delta-stn-shorter-refit", schedule, epochs=max(1, round(runs.share_of_training * runs.problem.epochs))
    )
    yield _last(refit, points)


def random_refit(runs: Runs, plain: float) -> Trace:
    """Random search with three plain runs' seconds, then the plain network with its best constants on all data.

    The refit stops after as many train steps as the best network had.
    """
    total, points = 0.0, []
    best, number, epoch = math.inf, 0, 1
    for draw in range(POOL):
        for count, point in enumerate(drawn(runs, draw), start=1):
            points.append(replace(point, seconds=total + point.seconds))
            if points[-1].seconds > (BUDGET - 1) * plain:
                break
            yield points[-1]
            if point.valid < best:
                best, number, epoch = point.valid, draw, count
        total = points[-1].seconds
        if total > (BUDGET - 1) * plain:
            break
    refit = runs.refit("random-refit-4", runs.draw(number), epochs=max(1, round(runs.share_of_training * epoch)))
    yield _last(refit, points)


def _last(refit: Point, before: Sequence[Point]) -> Point:
    """The refit after the points before it, with their best validation loss."""
    best = min(point.valid for point in before)
    return replace(refit, seconds=before[-1].seconds + refit.seconds, valid=best)


CONTENDERS: dict[str, Contender] = {
    "plain": Contender("plain run", single("plain", method="fixed")),
    "random": Contender("random search", random_search, largest=math.inf),
    "tpe": Contender("TPE", sampled("tpe", lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=4))),
    "gp": Contender(
        "Gaussian process", sampled("gp", lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=4))
    ),
    "asha": Contender("ASHA", asha),
    "pbt-4": Contender("PBT, 4 members", population(4)),
    "pbt-8": Contender("PBT, 8 members", population(8)),
    "schedule": Contender("schedule by hand", schedule),
    "trivial-augment": Contender("TrivialAugment", trivial_augment),
    "stn": Contender("STN", single("stn", method="stn", preset="paper")),
    "centered-stn": Contender("centred STN", single("centered-stn", method="centered-stn", preset="paper")),
    "delta-stn-paper": Contender("Δ-STN, `paper`", single("delta-stn-paper", method="delta-stn", preset="paper")),
    "delta-stn": Contender("Δ-STN", single("delta-stn", method="delta-stn")),
    "hybrid": Contender("hybrid", hybrid),
    "delta-stn-refit": Contender("Δ-STN, refit", self_tuned_refit),
    "random-refit": Contender("random search, refit", random_refit),
}


def contender(text: str) -> Contender:
    """A contender by name, or a self-tuned run with other options: `delta-stn:hyper_lr=0.02,hyper_decay=1`.

    Raises:
        ValueError: if there is no such contender, or an option is not `KEY=VALUE`.
    """
    name, _, changes = text.partition(":")
    if not changes:
        if name not in CONTENDERS:
            raise ValueError(f"`--methods` must be of {', '.join(CONTENDERS)}, got {name!r}")
        return CONTENDERS[name]
    options: dict[str, Any] = {}
    for change in changes.split(","):
        key, sign, value = change.partition("=")
        if not sign:
            raise ValueError(f"`--methods` must be METHOD:KEY=VALUE,…, got {text!r}")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    rd.Settings(**{"method": name, **options})
    return Contender(f"{name}, {changes}", single(text, method=name, **options))


def best_of(run: Iterator[Point]) -> tuple[Point, int]:
    """The report with the best validation loss, and its epoch."""
    epoch, best = min(enumerate(run, start=1), key=lambda one: one[1].valid)
    return best, epoch
