"""Training runs of one task and seed. Each is made once, only as far as somebody asks, and kept in a folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import ray_deltastn as rd
from benchmarks.common.record import rounded
from benchmarks.headroom.problems import Problem, Splits
from benchmarks.images import draw
from ray_deltastn.methods import get_method
from ray_deltastn.regularizers import Augmentation
from ray_deltastn.training.data import stream
from ray_deltastn.training.files import write_whole
from ray_deltastn.training.presets import values_of
from ray_deltastn.training.scores import evaluate
from ray_deltastn.training.settings import AUTO_CROSSINGS, AUTO_MOST


@dataclass(frozen=True)
class Point:
    """A report of a run.

    Attributes:
        seconds: CPU seconds since the start of the run, without data loading and without the test split.
        valid: validation loss, infinite if the run has diverged.
        test: test loss; computed only at the first report, at a new best validation loss, and at the end.
        values: hyperparameters in force during the epoch, if the method tunes them.
        last: whether this is a network that takes the place of all earlier ones, without a validation loss of its own.
    """

    seconds: float
    valid: float
    test: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    last: bool = False


class Clock:
    """CPU seconds of this process, counted only while the clock runs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._started


class Training:
    """One training run, report by report.

    Args:
        problem: the task.
        splits: its data.
        seed: seed of the initial weights and of the run.
        clock: counts the seconds of the run.
        extra: more augmentations.
        options: options of `SelfTuner`.
    """

    def __init__(
        self,
        problem: Problem,
        splits: Splits,
        seed: int,
        clock: Clock,
        extra: tuple[Augmentation, ...] = (),
        **options: Any,
    ) -> None:
        torch.manual_seed(seed)
        task = problem.task(splits, extra)
        self.clock, self.best = clock, math.inf
        given = {"epochs": problem.epochs, "seed": seed, "device": "cpu", "graph": "on", **options}
        with clock:
            self.tuner = rd.SelfTuner(task, **given)
        self.test = stream(splits[2], 1000, "test", torch.device("cpu"), seed)

    def step(self) -> Point:
        """Train up to the next report."""
        with self.clock:
            report = self.tuner.step()
        valid = report["valid_loss"]
        test = None
        if valid < self.best or (self.tuner.done and math.isfinite(valid)):
            self.best = min(valid, self.best)
            test = self.test_loss()
        return Point(self.clock.seconds, valid, test, self.tuner.in_force.latest() if self.tuner.method.tunes else {})

    def test_loss(self) -> float:
        """Test loss of the network now."""
        objective = self.tuner.objective
        return evaluate(objective, self.test, objective.valid_loss, {})["loss"]

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return self.tuner.done


class Runs:
    """The runs of one task and seed in a folder.

    Args:
        name: name of the task.
        problem: the task.
        seed: seed of the split, of the initial weights and of each run.
        folder: where the runs are kept.
        shared: options that all runs share.
        stop: called before each report; it may raise an exception to stop the work.
    """

    def __init__(
        self,
        name: str,
        problem: Problem,
        seed: int,
        folder: Path,
        shared: Mapping[str, Any],
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.problem, self.seed = name, problem, seed
        self.folder = folder / name / f"seed{seed}"
        self.shared, self.stop = dict(shared), stop
        self.space = rd.HyperSpace(**problem.spaces)
        self._splits: Splits | None = None

    @property
    def splits(self) -> Splits:
        """The data, read once."""
        if self._splits is None:
            self._splits = self.problem.splits(self.seed)
        return self._splits

    def draw(self, number: int) -> dict[str, float]:
        """Proposal `number` of random search."""
        return draw(self.space, 1000 * self.seed + number)

    def training(self, clock: Clock, extra: tuple[Augmentation, ...] = (), **options: Any) -> Training:
        """A new run on the data of this seed."""
        return Training(self.problem, self.splits, self.seed, clock, extra, **{**self.shared, **options})

    def follow(self, name: str, **options: Any) -> Iterator[Point]:
        """The reports of a run: those kept in the folder, then those that are trained now.

        Args:
            name: name of the run in the folder.
            options: options of `SelfTuner`, besides the shared ones.

        Raises:
            ValueError: if the folder has a run of this name with other options.
        """

        def train() -> Iterator[Point]:
            run = self.training(Clock(), **options)
            while not run.done:
                yield run.step()

        return self.kept(name, {**decided(options), **self.shared, **options}, train)

    def refit(self, name: str, given: pd.DataFrame | Mapping[str, float], **options: Any) -> Point:
        """The network trained again on training and validation data, see `rd.refit`; it has no validation loss.

        Args:
            name: name of the run in the folder.
            given: a schedule, or constants.
            options: options of `rd.refit`, besides the shared ones.
        """

        def train() -> Iterator[Point]:
            clock = Clock()
            torch.manual_seed(self.seed)
            task = self.problem.task(self.splits)
            settings: Any = {**self.shared, **options, "seed": self.seed, "device": "cpu", "graph": "on"}
            with clock:
                weights = rd.refit(task, given, **settings)
            model = self.problem.model()
            model.load_state_dict(weights)
            model.eval()
            x, y = self.splits[2]
            with torch.no_grad():
                yield Point(clock.seconds, 0.0, float(self.problem.loss(model(x), y)), last=True)

        values = given.to_dict("list") if isinstance(given, pd.DataFrame) else dict(given)
        (point,) = self.kept(name, {**self.shared, **options, "values": values}, train)
        return point

    @property
    def share_of_training(self) -> float:
        """Share of the training data in training and validation data together."""
        train, valid, _ = self.splits
        return len(train[0]) / (len(train[0]) + len(valid[0]))

    def kept(self, name: str, config: Mapping[str, Any], make: Callable[[], Iterator[Point]]) -> Iterator[Point]:
        """The points of a run that is kept in the folder as `name`.

        A run is deterministic except for its seconds. So if more points are asked for than are kept, it is made again
        from the start, and its seconds continue from the kept ones.

        Args:
            name: name of the run.
            config: what determines the run.
            make: function that makes the points.

        Raises:
            ValueError: if the folder has a run of this name with another configuration.
        """
        path = self.folder / f"{name}.json"
        config = json.loads(json.dumps(config))
        points: list[Point] = []
        done = False
        if path.exists():
            found = json.loads(path.read_text())
            if found["config"] != config:
                raise ValueError(f"`{path}` must be a run with {config}, got {found['config']}")
            points, done = [_point(row) for row in found["points"]], found["done"]
        yield from points
        if done:
            return
        self.stop()
        known = len(points)
        offset = 0.0
        try:
            for number, point in enumerate(make()):
                self.stop()
                if number < known:
                    offset = points[number].seconds - point.seconds
                    continue
                points.append(_point(_row(replace(point, seconds=point.seconds + offset))))
                yield points[-1]
            done = True
        finally:
            if len(points) > known or done:
                path.parent.mkdir(parents=True, exist_ok=True)
                rows = [
                    rounded({key: value for key, value in asdict(p).items() if value not in (None, {})}) for p in points
                ]
                write_whole(path, json.dumps({"config": config, "done": done, "points": rows}) + "\n")


def decided(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a preset decides for a self-tuned run, so that a kept run of another preset is refused."""
    method = get_method(options["method"])
    if not method.responds:
        return {}
    found = values_of(options.get("preset", "recommended"), method)
    automatic = found["hyper_lr"] == "auto" and "hyper_lr" not in options
    return {**found, "auto_crossings": AUTO_CROSSINGS, "auto_most": AUTO_MOST} if automatic else found


def _row(point: Point) -> dict[str, Any]:
    # A search is told the rounded losses, also of a new run: so it proposes the same when its runs are read again.
    return {
        key: rounded(value)
        for key, value in asdict(point).items()
        if value is not None and value is not False and value != {}
    }


def _point(row: Mapping[str, Any]) -> Point:
    valid = row.get("valid")
    valid = math.inf if valid is None else valid
    return Point(row["seconds"], valid, row.get("test"), row.get("values", {}), row.get("last", False))


def cheap_arithmetic() -> None:
    """One thread, and no denormal numbers: a large weight decay makes weights so small that they slow a CPU down."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
