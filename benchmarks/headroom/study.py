"""What keeps λ from the optimum? Δ-STN with one thing changed at a time, on tasks with headroom.

    python -m benchmarks.headroom.study --out DIR
    python -m benchmarks.headroom.study --out DIR --groups rate,cost --seeds 10 --tasks protein,digits-200
    python -m benchmarks.headroom.study --out DIR --report --json FILE.json [--add] --plot FOLDER

Each variant differs from a reference in one point. It is paired with the reference on the same task and split, with the
same initial weights and order of the data. The reference trains Θ on the whole minibatch, by SGD and without pairs
±ε, as the recommended Δ-STN did when most groups were measured. The reference of `share` has RMSProp and pairs.

| group      | what changes                                                                      |
|------------|-----------------------------------------------------------------------------------|
| `rate`     | the learning rate of λ: a quarter, a half, twice and four times the automatic one |
| `tricks`   | options of λ's step, and changes of it in `benchmarks.headroom.tricks`            |
| `cost`     | shares of each minibatch that train Θ                                             |
| `response` | how Θ is trained: by RMSProp, in pairs of perturbations ±ε, or both               |
| `share`    | shares of each minibatch that train Θ, by RMSProp and in pairs                     |
| `others`   | more options: warm-up, perturbations, limits, σ                                   |
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import ray_deltastn as rd
from benchmarks.common.arguments import number, prepare, several, whole
from benchmarks.common.machine import versions
from benchmarks.common.record import add_option, command_line, earlier_record, grown, rounded, write
from benchmarks.headroom import tricks
from benchmarks.headroom.contenders import best_of
from benchmarks.headroom.pictures import rate_curve
from benchmarks.headroom.problems import SUITE
from benchmarks.headroom.runs import Clock, Point, Runs, cheap_arithmetic
from benchmarks.headroom.suite import OutOfTimeError, Timed, picked, spread_out
from ray_deltastn.methods import MethodName

UNFINISHED = 3
METHOD: MethodName = "delta-stn"
#: Names of the references, with their options.
REFERENCE, WHOLE = "delta-stn", "rmsprop-whole"
REFERENCES: Mapping[str, Mapping[str, Any]] = {
    REFERENCE: {"response_optimizer": "sgd", "antithetic": False, "response_fraction": 1.0},
    WHOLE: {"response_optimizer": "rmsprop", "antithetic": True, "response_fraction": 1.0},
}
#: Tasks whose runs are short, one where Δ-STN wins and two where it loses.
TASKS = ("mnist1d-1000", "protein", "digits-200")
#: Factors of the automatic learning rate of λ.
FACTORS = (0.25, 0.5, 2.0, 4.0)


@dataclass(frozen=True)
class Variant:
    """Δ-STN with one thing changed.

    Attributes:
        label: what is changed.
        options: options that differ from those of the reference.
        change: function that rebuilds the tuner before its first step; its steps are not captured then.
        rate: factor of the automatic learning rate of λ.
        warmup: share of the epochs without hyper steps.
        reference: what it is compared with.
    """

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[rd.SelfTuner], None] | None = None
    rate: float | None = None
    warmup: float | None = None
    reference: str = REFERENCE


RATES = {f"rate-{factor:g}": Variant(f"λ's rate × {factor:g}", rate=factor) for factor in FACTORS}
TRICKS = {
    "constant-rate": Variant("λ's rate does not fall", {"hyper_decay": 1.0}),
    "rising-rate": Variant("λ's rate rises over the first half", change=tricks.rising),
    "whole-valid": Variant("hyper batch of the whole validation set", {"valid_batch_size": 500}),
    "signs": Variant("sign of 10 summed hypergradients", {"hyper_clip": 2.0 * tricks.SEGMENT}, change=tricks.signs),
    "signal-to-noise": Variant("steps by signal to noise", change=tricks.signal_to_noise),
    "adam": Variant("Adam for λ and σ", {"hyper_optimizer": "adam", "graph": "off"}),
    "averaged": Variant("averages of w₀ and Θ for the hyper step", change=tricks.averaged),
    "tau-0": Variant("τ = 0", {"entropy_weight": 0.0}),
    "tau-0.01": Variant("τ = 0.01", {"entropy_weight": 0.01}),
    "cycle-2": Variant("T_train = 2", {"train_interval": 2}),
    "cycle-20": Variant("T_train = 20", {"train_interval": 20}),
}
OTHERS = {
    "warmup-0": Variant("no warm-up", {"warmup": 0}),
    "warmup-0.3": Variant("warm-up of 30 % of the run", warmup=0.3),
    "two-perturbations": Variant("two perturbations for each example", {"perturbations": 2}),
    "linearized": Variant("linearised hyper step", {"hyper_pass": "linearized"}),
    "no-response-clip": Variant("gradient of Θ not limited", {"response_clip": 1e9}),
    "held-scale": Variant("σ is not tuned", {"tune_scale": False}),
}
COSTS = {
    "half": Variant("½ of each minibatch trains Θ", {"response_fraction": 0.5}),
    "quarter": Variant("¼", {"response_fraction": 0.25}),
    "quarter-pairs": Variant("¼, in pairs ±ε", {"response_fraction": 0.25, "antithetic": True}),
    "eighth": Variant("⅛", {"response_fraction": 0.125}),
}
RESPONSES = {
    "pairs": Variant("pairs ±ε of half the examples", {"antithetic": True}),
    "rmsprop": Variant("RMSProp for Θ", {"response_optimizer": "rmsprop"}),
    WHOLE: Variant("RMSProp for Θ, in pairs ±ε", REFERENCES[WHOLE]),
}
SHARES = {
    "rmsprop-half": Variant("½ of each minibatch trains Θ", {"response_fraction": 0.5}, reference=WHOLE),
    "rmsprop-quarter": Variant("¼", {"response_fraction": 0.25}, reference=WHOLE),
    "rmsprop-eighth": Variant("⅛", {"response_fraction": 0.125}, reference=WHOLE),
}
GROUPS = {
    "rate": RATES, "tricks": TRICKS, "cost": COSTS, "response": RESPONSES, "share": SHARES, "others": OTHERS,
}  # fmt: skip
#: The one variant that has no validation data of its own; it is judged by the refit with its schedule.
ROTATING = "rotating"


def variant_run(runs: Runs, name: str, variant: Variant) -> Iterator[Point]:
    """The reports of a variant's run, kept in the folder as `study-NAME`."""
    options = {**REFERENCES[variant.reference], **variant.options}
    if variant.rate is not None:
        options["hyper_lr"] = variant.rate * runs.training(Clock(), method=METHOD, **options).tuner.hyper_lr
    if variant.warmup is not None:
        options["warmup"] = variant.warmup * runs.problem.epochs
    if variant.change is None:
        yield from runs.follow(f"study-{name}", method=METHOD, **options)
        return

    def train() -> Iterator[Point]:
        run = runs.training(Clock(), method=METHOD, graph="off", **options)
        assert variant.change is not None
        variant.change(run.tuner)
        while not run.done:
            yield run.step()

    yield from runs.kept(f"study-{name}", {**runs.shared, **options, "change": name}, train)


def rotating_refit(runs: Runs) -> Point:
    """The plain network trained on all data with the schedule that a run with rotating splits has learned."""

    def train() -> Iterator[Point]:
        torch.manual_seed(runs.seed)
        train_data, valid_data = tricks.rotating(runs.splits, runs.shared["batch_size"])
        task = runs.problem.task(runs.splits)
        rotated = rd.Task(
            space=task.space, model=task.model, loss=task.loss, train=train_data, valid=valid_data,
            augment=task.augmentations, penalty=task.penalties,
        )  # fmt: skip
        given: Any = {"epochs": runs.problem.epochs, "seed": runs.seed, "device": "cpu", **runs.shared}
        given |= REFERENCES[REFERENCE]
        clock = Clock()
        tuner = rd.SelfTuner(rotated, METHOD, **given)
        while not tuner.done:
            with clock:
                tuner.step()
            yield Point(clock.seconds, 0.0, values=tuner.in_force.latest())

    points = list(runs.kept(f"study-{ROTATING}", {**runs.shared, "change": ROTATING}, train))
    return runs.refit(f"study-{ROTATING}-refit", pd.DataFrame([point.values for point in points]))


def reference_run(runs: Runs, name: str = REFERENCE) -> Iterator[Point]:
    """The reports of a reference."""
    return runs.follow(f"study-{name}", method=METHOD, **REFERENCES[name])


def reference_refit(runs: Runs) -> Point:
    """The same with the schedule of the reference."""
    schedule = pd.DataFrame([point.values for point in reference_run(runs)])
    return runs.refit(f"study-{REFERENCE}-refit", schedule, use="schedule")


@dataclass(frozen=True)
class Work(Timed):
    """What one process does: some variants of one task and seed."""

    task: str
    seed: int
    groups: tuple[str, ...]
    out: Path
    until: float | None

    def lines(self) -> Iterator[str]:
        """Run the variants."""
        for row in self.rows():
            losses = "  ".join(f"{key} {row[key]:.4f}" for key in ("best", "test", "refit") if key in row)
            yield f"{self.task} seed {self.seed}  {row['variant']}: {losses}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row of the record for the reference and for each variant.

        `best`: the best validation loss. `test`: the test loss there. `final`: the mean validation loss of the last
        twentieth of the run. `seconds`: of the run.
        """
        runs = Runs(self.task, SUITE[self.task](), self.seed, self.out, picked(self.task), self.check)
        wanted = {name: variant for group in self.groups for name, variant in GROUPS[group].items()}
        for name in dict.fromkeys(variant.reference for variant in wanted.values()):
            yield self.row(name, reference_run(runs, name))
        for name, variant in wanted.items():
            yield self.row(name, variant_run(runs, name, variant))
        if "tricks" in self.groups:
            for name, refit in ((REFERENCE, reference_refit), (ROTATING, rotating_refit)):
                yield {"task": self.task, "seed": self.seed, "variant": name, "refit": refit(runs).test}

    def row(self, name: str, run: Iterator[Point]) -> dict[str, Any]:
        """One row of the record."""
        points = list(run)
        best, _ = best_of(iter(points))
        tail = [point.valid for point in points[-max(1, len(points) // 20) :]]
        row = {"task": self.task, "seed": self.seed, "variant": name, "best": best.valid, "test": best.test}
        return {**row, "final": sum(tail) / len(tail), "seconds": points[-1].seconds}


def report(works: Sequence[Work], command: str, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of what is in the folder, besides the other rows of an earlier record."""
    cheap_arithmetic()
    rows = []
    for work in works:
        for group in work.groups:
            try:
                for row in Work(work.task, work.seed, (group,), work.out, until=0.0).rows():
                    rows.append(rounded(row, 5))
            except OutOfTimeError:
                continue
    return grown(earlier, rows, _of, command, versions())


def _of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["seed"], row["variant"], "refit" in row


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, or report it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headroom.study", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=several(str), default=list(TASKS), help=", ".join(SUITE))
    parser.add_argument("--groups", type=several(str), default=list(GROUPS), help=", ".join(GROUPS))
    parser.add_argument("--seeds", type=whole(), default=5, help="number of seeds")
    parser.add_argument("--minutes", type=number(above=0.0), help="stop after this time")
    parser.add_argument("--workers", type=whole(), default=1, help="number of processes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--json", type=Path, help="file for the record")
    add_option(parser)
    parser.add_argument("--plot", type=Path, help="folder for the picture")
    options = parser.parse_args(arguments)
    command = command_line("benchmarks.headroom.study", arguments).replace(str(options.out), "DIR")
    for given, known, flag in ((options.tasks, SUITE, "--tasks"), (options.groups, GROUPS, "--groups")):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"`{flag}` must be of {', '.join(known)}, got {unknown[0]!r}")
    earlier = earlier_record(parser, options)
    prepare(parser, options.json)
    until = None if options.minutes is None else time.time() + 60 * options.minutes
    works = [
        Work(task, seed, (group,), options.out, until)
        for group in options.groups
        for seed in range(options.seeds)
        for task in options.tasks
    ]
    done = [] if options.report else list(spread_out([partial(work.run) for work in works], options.workers))
    if options.json or options.plot:
        found = report(works, command, earlier)
        if options.json:
            write(options.json, found)
        if options.plot:
            rate_curve(found["rows"], options.plot / "rate.png")
    if not all(done):
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    main()
