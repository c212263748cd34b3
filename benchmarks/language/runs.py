"""Runs that are kept in a folder, epoch by epoch: a run that was stopped goes on with the epoch in which it stopped."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import ray_deltastn as rd
from benchmarks.common.record import rounded
from benchmarks.images import draw
from benchmarks.language.problems import PROBLEMS, TRIALS, TUNED, Problem
from ray_deltastn.tasks import build_task
from ray_deltastn.training.files import write_whole, written_whole


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        problem: name of the problem.
        seed: seed of the initial weights and of the run.
        name: `plain`, `none` (the decay of `plain` and nothing else), `initial` (the initial values as constants),
            `random0` to `random7`, or a self-tuned contender.
        out: folder of all runs.
        changes: options of the task and of training that replace those of the problem, such as fewer epochs.
    """

    problem: str
    seed: int
    name: str
    out: Path
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def path(self) -> Path:
        """The file of the run."""
        return self.out / self.problem / f"seed{self.seed}" / f"{self.name.replace(' ', '-')}.json"

    @property
    def of(self) -> Problem:
        """The problem, with the changes."""
        one, changes = PROBLEMS[self.problem], dict(self.changes)
        options = {name: changes.pop(name, value) for name, value in one.options.items()}
        options |= {"path": changes.pop("path")} if "path" in changes else {}
        return replace(one, options=options, training={**one.training, **changes})

    def settings(self, space: rd.HyperSpace) -> dict[str, Any]:
        """Options of `SelfTuner`."""
        shared = {**self.of.training, "seed": self.seed, "device": "cpu"}
        if self.name in TUNED:
            return {**shared, "warmup": self.of.warmup, **TUNED[self.name]}
        initial = {name: p.initial for name, p in space.hyperparameters.items()}
        constants = initial if self.name == "initial" else dict(self.of.constants)
        if self.name == "none":
            constants = {name: value if name.endswith("decay") else 0.0 for name, value in constants.items()}
        if self.name.startswith("random"):
            constants = draw(space, 1000 * self.seed + int(self.name.removeprefix("random")))
        return {**shared, "method": "fixed", "hyperparameters": constants}

    def read(self) -> dict[str, Any] | None:
        """The content of the file of the run, or None."""
        return json.loads(self.path.read_text()) if self.path.exists() else None

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        found = self.read()
        return found is not None and bool(found["done"])

    def train(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train from the last epoch that is kept to the end, or until `stop` is true after an epoch.

        Returns:
            Whether the run has ended.

        Raises:
            ValueError: if the folder has a run of this name with another configuration.
        """
        torch.set_num_threads(1)
        torch.manual_seed(self.seed)
        of = self.of
        scale = {"perturbation_scale": 1.0} if TUNED.get(self.name, {}).get("preset") == "paper" else {}
        task = build_task({"task": of.task, **of.options, **scale})
        settings = self.settings(task.space)
        options = {name: value for name, value in of.options.items() if name != "path"}  # a record has no paths
        config = json.loads(json.dumps({"options": options, "settings": settings, **task.identity}))
        found = self.read() or {"config": config, "seconds": 0.0, "done": False, "rows": []}
        if found["config"] != config:
            raise ValueError(f"`{self.path}` must be a run with {config}, got {found['config']}")
        if found["done"]:
            return True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rd.RunWarning)
            tuner = rd.SelfTuner(task, **settings)
            state = self.path.with_suffix(".pt")
            if state.exists():
                kept = torch.load(state, weights_only=True)
                tuner.load_state_dict(kept["tuner"])
                found = json.loads(kept["found"])
            while not tuner.done:
                started = time.process_time()
                row = _row(tuner.step(), tuner)
                found["seconds"] += time.process_time() - started
                found["rows"].append(rounded({**row, "seconds": found["seconds"]}))
                found["done"] = tuner.done
                self._keep(tuner, found)
                if stop() and not tuner.done:
                    return False
        state.unlink(missing_ok=True)
        return True

    def train_until(self, until: float | None) -> bool:
        """The same until a Unix time; None means to the end."""
        if until is not None and time.time() > until:
            return self.done
        done = self.train(lambda: until is not None and time.time() > until)
        print(f"{self.problem} seed {self.seed} {self.name}: {'done' if done else 'stopped'}", flush=True)
        return done

    def _keep(self, tuner: rd.SelfTuner, found: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found)
        if not found["done"]:
            with written_whole(self.path.with_suffix(".pt")) as draft:
                torch.save({"tuner": tuner.state_dict(), "found": text}, draft)
        write_whole(self.path, text + "\n")


def _row(report: Mapping[str, Any], tuner: rd.SelfTuner) -> dict[str, Any]:
    """What is kept of a report."""
    names = ("epoch", "train_loss", "valid_loss", "test_loss", "lr", "response_size")
    row = {name: report[name] for name in names if name in report}
    return {**row, "values": tuner.in_force.latest() if tuner.method.tunes else {}}


def runs(problem: str, seed: int, contender: str, out: Path, changes: tuple[tuple[str, Any], ...] = ()) -> list[Run]:
    """The runs of a contender: one, or the trials of random search."""
    names = [f"random{trial}" for trial in range(TRIALS)] if contender == "random" else [contender]
    return [Run(problem, seed, name, out, changes) for name in names]


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row with the smallest validation loss; a loss that is not finite is None."""
    return min(rows, key=lambda row: math.inf if row["valid_loss"] is None else row["valid_loss"])
