"""Image classification as in §5.2: one run, which can be interrupted and continued, and its record.

    python -m benchmarks.images --task fashion-cnn --method delta-stn --epochs 30 --seed 0 --out DIR

The settings are those of the paper (H.2): `preset: paper` and the values in the task's file in `configs/`.
`--set KEY=VALUE` changes a setting or an option of the task (`--set images=10000`, `--set response_fraction=0.25`, and
for `fixed` `--set 'hyperparameters={"dropout0": 0.2}'`). A smaller `--epochs` shortens the learning-rate schedule of
the CIFAR-10 tasks in proportion.

A run saves its state in `DIR/LABEL-sSEED.pt`, and the same command continues it. `--minutes M` stops it before the
report that would exceed M minutes, but after at least one report. The exit status is 3 if the run is not finished.
`DIR/LABEL-sSEED.json` contains the configuration, the versions, the machine, and one entry of `curve` per epoch:
losses, accuracies, hyperparameters, and seconds so far. Hyperparameters are tuned on the validation split. The test
split is only reported.

`--schedule-of FILE.json` trains `fixed` with the schedule that another run has found (Table 4). `--schedule-form` is
one of:

- `schedule`: the schedule unchanged;
- `final`: its last values, as constants.

Such a run is called `fixed-schedule` or `fixed-final`. Its record contains the name of the other run and a checksum of
the values. It can be continued only with the same values. `benchmarks.single_dropout` has the option `perturbed` for
the perturbed constants of Table 4.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import ray_deltastn as rd
from benchmarks.common.arguments import whole
from benchmarks.common.machine import hardware, quiet, versions
from benchmarks.common.record import rounded
from ray_deltastn.tasks import build_task
from ray_deltastn.tasks.options import Watched
from ray_deltastn.training.capture.graphs import GraphedSteps
from ray_deltastn.training.columns import GROUPS, SECONDS, VALUES
from ray_deltastn.training.files import write_whole, written_whole
from ray_deltastn.training.settings import Settings

_COMMON = {"batch_size": 128, "momentum": 0.9, "entropy_weight": 1e-3}
_CIFAR = {**_COMMON, "schedule": {"name": "step", "step_size": 60, "gamma": 0.2}}
#: Training settings of H.2, with the number of epochs that they are made for.
PAPER: dict[str, tuple[int, dict[str, Any]]] = {
    "mnist-mlp": (300, {**_COMMON, "lr": 0.01}),
    "fashion-cnn": (300, {**_COMMON, "lr": 0.01}),
    "cifar10-alexnet": (200, {**_CIFAR, "lr": 0.03}),
    "cifar10-vgg16": (200, {**_CIFAR, "lr": 0.01, "entropy_weight": 1e-4}),
    "cifar10-resnet18": (200, {**_CIFAR, "lr": 0.05, "entropy_weight": 1e-4, "sub_batches": "auto"}),
}
#: Settings for which the paper has a different value for one method.
PAPER_OF_METHOD: dict[tuple[str, str], dict[str, Any]] = {("cifar10-vgg16", "stn"): {"entropy_weight": 1e-3}}
#: Columns of a report that a record keeps.
CURVE = (
    "epoch",
    "steps",
    "train_loss",
    "valid_loss",
    "valid_accuracy",
    "test_loss",
    "test_accuracy",
    "lr",
    "response_size",
)
UNFINISHED = 3
FORMS = ("schedule", "final")
#: Keys of a record about the schedule that the run follows. A missing key means null.
SCHEDULE = ("schedule_of", "schedule_form", "schedule_sha256")
#: Options that have a separate flag.
FLAGS = ("task", "method", "epochs", "seed")


def configuration(task: str, method: str, epochs: int, seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration of a run: the paper's settings, shortened to `epochs`, with changes.

    Args:
        task: name of a ready task, or an import string; an import string starts from `preset: paper` alone.
        method: name of a method.
        epochs: passes over the training data.
        seed: seed of the run; `split_seed` is the seed of the split.
        changes: values of options of `Settings` or of the task.
    """
    planned, settings = PAPER.get(task, (epochs, {}))
    settings = dict(settings)
    if "schedule" in settings:
        step = max(1, round(settings["schedule"]["step_size"] * epochs / planned))
        settings["schedule"] = {**settings["schedule"], "step_size": step}
    settings |= PAPER_OF_METHOD.get((task, method), {})
    paper = {"task": task, "method": method, "preset": "paper", **settings}
    return {**paper, **changes, "epochs": epochs, "seed": seed}


def schedule_of(record: Mapping[str, Any], form: str, space: rd.HyperSpace) -> dict[str, Any]:
    """Hyperparameters for `fixed` from the schedule of another run, in one of `FORMS`.

    Args:
        record: record of the other run.
        form: `schedule` or `final`.
        space: hyperparameters of the task.

    Returns:
        name → one value, or one value per epoch.

    Raises:
        ValueError: if the record does not have these hyperparameters, or is shorter than an epoch.
    """
    names = space.names
    curve = record.get("curve") if isinstance(record, Mapping) else None
    missing = [n for n in names if not curve or any(VALUES(n) not in point for point in curve)]
    if not curve or missing:
        raise ValueError(f"`--schedule-of` must be a record of a run that tuned {', '.join(names)}, got another record")
    points = epoch_ends(curve)
    if not points:
        raise ValueError("`--schedule-of` must be a record of at least one epoch, got a shorter record")
    if form == "final":
        return {name: points[-1][VALUES(name)] for name in names}
    return {name: [point[VALUES(name)] for point in points] for name in names}


def epoch_ends(curve: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """For each epoch of a curve, the first report at or after its end; an epoch may have several reports or none."""
    ends: list[Mapping[str, Any]] = []
    for point in curve:
        ends += [point] * (point["epoch"] - len(ends))
    return ends


def draw(space: rd.HyperSpace, number: int) -> dict[str, float]:
    """Proposal `number` of random search: name → value, uniform in the search range or in its logarithm."""
    generator = torch.Generator().manual_seed(number)
    values = {}
    for name, p in space.hyperparameters.items():
        (low, high), share = p.search_range(name), torch.rand((), generator=generator, dtype=torch.float64).item()
        if p.integer:
            values[name] = float(min(math.floor(low + share * (high - low + 1)), high))
        elif p.log_search:
            values[name] = low * (high / low) ** share
        else:
            values[name] = low + share * (high - low)
    return values


class Run:
    """One run and its files; `go` trains until the run is done or the time is used up.

    Args:
        config: see `configuration`.
        label: name of the run in tables and file names.
        folder: folder of its files.
        schedule: record whose schedule `fixed` follows, and the form; None for no schedule.
        proposal: number of the proposal of random search that `fixed` trains with; None for no proposal.

    Raises:
        ValueError: if the files in the folder have a different configuration, the hyperparameters are given twice, or
            an option is unknown.
    """

    def __init__(
        self,
        config: dict[str, Any],
        label: str,
        folder: Path,
        schedule: tuple[Path, str] | None = None,
        proposal: int | None = None,
    ) -> None:
        self.config, self.label = config, label
        stem = f"{label}-s{config['seed']}"
        self.record_file, self.state_file = folder / f"{stem}.json", folder / f"{stem}.pt"
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config["seed"])
        watched = Watched(config)
        task = build_task(watched)
        unknown = [key for key in config if key not in Settings.names() and key not in watched.read]
        if unknown:
            known = sorted({*Settings.names(), *watched.read} - {"task"})
            raise ValueError(
                f"`--set {unknown[0]}` must be an option of `Settings` or an option that {config['task']!r} reads, got "
                f"an unknown option; known options are {', '.join(known)}"
            )
        if (schedule is not None) + (proposal is not None) + ("hyperparameters" in config) > 1:
            raise ValueError(
                "only one of `--schedule-of`, `--draw` and `--set hyperparameters=…` may set the hyperparameters, got "
                "several of them"
            )
        if proposal is not None:
            self.config = config = {**config, "hyperparameters": draw(task.space, proposal)}
        options = {name: config[name] for name in Settings.names() if name in config}
        followed: dict[str, str] = {}
        if schedule is not None:
            path, form = schedule
            values = schedule_of(json.loads(path.read_text()), form, task.space)
            options["hyperparameters"] = values
            checksum = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]
            followed = dict(zip(SCHEDULE, (path.stem, form, checksum), strict=True))
        self.tuner = rd.SelfTuner(task, **options)
        self.record: dict[str, Any] = {
            "label": label,
            "config": config,
            **followed,
            "hardware": hardware(self.tuner.device),
            "threads": torch.get_num_threads(),
            **versions(),
            "captured": False,
            "done": False,
            "stop_reason": "",
            "curve": [],
        }
        self._continue()

    def _continue(self) -> None:
        if not self.record_file.exists():
            return
        found = json.loads(self.record_file.read_text())
        was, now = found["config"], json.loads(json.dumps(self.config))
        different = sorted(key for key in was | now if was.get(key) != now.get(key))
        different += [key for key in SCHEDULE if found.get(key) != self.record.get(key)]
        if different:
            raise ValueError(
                f"`{self.record_file}` must be of this configuration, got a different {', '.join(different)}; set "
                "another `--label` or `--out`"
            )
        self.record = found
        if not found["done"]:
            self.tuner.load_state_dict(torch.load(self.state_file, map_location="cpu", weights_only=True))
            if self.tuner.steps > found["curve"][-1]["steps"]:  # the run was killed after it wrote its state
                self._note(self.tuner.last_report)

    def _note(self, report: Mapping[str, Any]) -> None:
        kept = [*CURVE, *(key for key in report if any(key in group for group in GROUPS))]
        self.record["curve"].append({key: rounded(report[key]) for key in kept if key in report})
        steps = self.tuner.algorithm
        captured = isinstance(steps, GraphedSteps) and steps.captured
        self.record.update(captured=captured, done=self.tuner.done, stop_reason=report["stop_reason"])

    def go(self, minutes: float | None = None) -> bool:
        """Train, print a line per epoch and save; return True when the run is done."""
        started = time.perf_counter()
        longest = 0.0
        while not self.record["done"]:
            before = time.perf_counter()
            report = self.tuner.step()
            self._note(report)
            print(
                f"{self.label} seed {self.config['seed']}  epoch {report['epoch']}/{self.config['epochs']}  "
                f"train {report['train_loss']:.4f}  valid {report['valid_loss']:.4f}  "
                f"test {report.get('test_loss', float('nan')):.4f}  {report[SECONDS('total')]:.0f} s",
                flush=True,
            )
            self.save()
            now = time.perf_counter()
            longest = max(longest, now - before)
            if minutes is not None and now - started + longest > 60 * minutes:
                if longest > 60 * minutes:
                    print(f"a report takes {longest / 60:.1f} minutes: `--set steps_per_report=N` makes it shorter")
                break
        return bool(self.record["done"])

    def save(self) -> None:
        """Write the state and the record, each in one piece; a finished run keeps only its record."""
        if not self.record["done"]:
            with written_whole(self.state_file) as draft:
                torch.save(self.tuner.state_dict(), draft)
        write_whole(self.record_file, json.dumps(self.record) + "\n")
        if self.record["done"]:
            self.state_file.unlink(missing_ok=True)


def change(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    if key in FLAGS:
        raise argparse.ArgumentTypeError(f"must not set {key}, use the flag `--{key}`, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one run, or continue it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", default="fashion-cnn", help=f"{', '.join(PAPER)}, or 'module:function'")
    parser.add_argument("--method", default="delta-stn")
    parser.add_argument("--epochs", type=whole(), help="number of epochs (default: the paper's)")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for records and states")
    parser.add_argument("--label", help="name of the run (default: the method, fixed-FORM or random-N)")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command continues the run")
    parser.add_argument("--set", type=change, action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--schedule-of", type=Path, metavar="FILE.json", help="record whose schedule `fixed` follows")
    parser.add_argument("--schedule-form", choices=FORMS, default="schedule")
    parser.add_argument("--draw", type=whole(0), metavar="N", help="train `fixed` with proposal N of random search")
    parser.add_argument("--threads", type=whole(), help="CPU threads (default: PyTorch's)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    epochs = options.epochs if options.epochs is not None else PAPER.get(options.task, (10, {}))[0]
    quiet()  # the record contains the same numbers
    try:
        config = configuration(options.task, options.method, epochs, options.seed, dict(options.changes))
        schedule = (options.schedule_of, options.schedule_form) if options.schedule_of else None
        usual = f"fixed-{options.schedule_form}" if schedule else options.method
        usual = usual if options.draw is None else f"random-{options.draw}"
        run = Run(config, options.label or usual, options.out, schedule, options.draw)
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    if not run.go(options.minutes):
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    main()
