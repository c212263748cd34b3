"""Train the plain network again with what a run has learned, on training and validation data together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, TensorDataset
from typing_extensions import Unpack

from ray_deltastn.response.trees import joined as both
from ray_deltastn.task import Task
from ray_deltastn.training.files import write_whole, written_whole
from ray_deltastn.training.in_force import final_values, stretched
from ray_deltastn.training.options import Options
from ray_deltastn.training.saved import MODEL_FILE, SCHEDULE_FILE
from ray_deltastn.training.segments import Segments
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.tuner import SelfTuner

Use = Literal["schedule", "final"]
Data = Literal["train+valid", "train"]
Given = pd.DataFrame | Mapping[str, Any]

#: The state of an unfinished run in `folder`, beside the trained network and the hyperparameters.
PROGRESS_FILE = "refit.pt"
#: Options that `refit` decides.
_DECIDED = ("method", "hyperparameters")


def refit(
    task: Task,
    found: Given,
    /,
    *,
    use: Use = "schedule",
    data: Data = "train+valid",
    folder: str | Path | None = None,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    **options: Unpack[Options],
) -> dict[str, Tensor]:
    """Train a task from the start with known hyperparameters, on training and validation data together.

    Args:
        task: the task, built anew: its model has the initial weights.
        found: what `SelfTuner.schedule` returns, or name → value or one value per epoch.
        use: `schedule` replays the schedule epoch by epoch; `final` trains with constants, the means of the schedule
            over its last fifth of the epochs (for `Positive` the geometric mean).
        data: `train+valid`, or `train` alone.
        folder: folder for the result (`model.pt`, `schedule.json`) and the state of an unfinished run, from which the
            same call continues. None writes nothing.
        on_report: called with each report. `valid_loss` in it is a loss on data that were trained on, unless `data` is
            `train`.
        options: options of the run, see `Settings`. By default the number of epochs is that of the schedule. With
            another number, a table is stretched or compressed to it.

    Returns:
        The `state_dict` of the trained network.

    Raises:
        ValueError: if an option is one that this function decides, the hyperparameters break a rule, the data cannot be
            joined, or the run diverges.

    Examples:
        >>> tuner = SelfTuner(build({}), epochs=3)
        >>> reports = list(tuner.fit())
        >>> weights = refit(build({}), tuner.schedule(best=True))
        >>> sorted(weights) == sorted(build({}).model.state_dict())
        True
    """
    _check(use, data, options)
    if isinstance(found, pd.DataFrame) and len(found) and "epochs" in options:
        found = stretched(found, options["epochs"])
    values = constants_of(found, task, use)
    columns = found.to_dict("list") if isinstance(found, pd.DataFrame) else found
    length = max((len(v) for v in columns.values() if isinstance(v, Sequence)), default=None)
    if "epochs" not in options and length is None:
        raise ValueError("`epochs` must be given with constants, which have no length, got none")
    given: Any = {"epochs": length, **options, "hyperparameters": values}
    if data == "train+valid":
        task = replace(task, train=joined(task.train, task.valid))
    tuner = SelfTuner(task, "fixed", **given)
    home = None if folder is None else Path(folder)
    if home is not None:
        home.mkdir(parents=True, exist_ok=True)
        _continue(tuner, home)
    while not tuner.done:
        report = tuner.step()
        if home is not None and not tuner.done:
            with written_whole(home / PROGRESS_FILE) as draft:
                torch.save({"values": values, "state": tuner.state_dict()}, draft)
        if on_report is not None:
            on_report(report)
    if tuner.last_report["diverged"]:
        raise ValueError(f"the run must not diverge, got: {tuner.stop_reason}")
    weights = tuner.export()
    tuner.release()
    if home is not None:
        with written_whole(home / MODEL_FILE) as draft:
            torch.save(weights, draft)
        epochs = tuner.settings.epochs
        by_epoch = {name: v if isinstance(v, list) else [v] * epochs for name, v in values.items()}
        write_whole(home / SCHEDULE_FILE, json.dumps(by_epoch) + "\n")
        (home / PROGRESS_FILE).unlink(missing_ok=True)
    return weights


def _check(use: str, data: str, options: Mapping[str, Any]) -> None:
    for name, value, kinds in (("use", use, get_args(Use)), ("data", data, get_args(Data))):
        if value not in kinds:
            raise ValueError(f"`{name}` must be one of {', '.join(kinds)}, got {value!r}")
    Settings.require_known(options)
    for name in _DECIDED:
        if name in options:
            raise ValueError(f"`refit` decides `{name}`, got {options[name]!r}")
    if options.get("patience") is not None and data == "train+valid":
        raise ValueError(f"`patience` needs validation data, but they are trained on, got {options['patience']}")
    plan = options.get("schedule")
    if (plan.get("name") if isinstance(plan, Mapping) else plan) == "plateau" and data == "train+valid":
        raise ValueError(
            "`schedule: plateau` needs validation data, but they are trained on; give another schedule, such as "
            "`multistep` with the epochs after which the learning rate fell"
        )


def constants_of(schedule: Given, task: Task, use: Use) -> dict[str, Any]:
    """Hyperparameters for the method `fixed`: name → value, or one value per epoch.

    Raises:
        ValueError: if `final` is asked of constants, or a name is unknown.
    """
    if isinstance(schedule, pd.DataFrame):
        plain: dict[str, Any] = {str(name): column.tolist() for name, column in schedule.items()}
    else:
        plain = {name: v if isinstance(v, Sequence) else float(v) for name, v in schedule.items()}
    task.space.require(plain, "`schedule`")
    if use == "final":
        table = pd.DataFrame(task.space.fixed_values(plain).numpy(force=True), columns=list(task.space.names))
        return final_values(table[list(plain)], task.space)
    return {name: list(map(float, v)) if isinstance(v, Sequence) else v for name, v in plain.items()}


def joined(train: Any, valid: Any) -> Any:
    """Training and validation data as one: tensors, data sets, a `DataLoader` or `Segments` like the first.

    Raises:
        ValueError: if a part is an iterable data set, or a loader draws with a sampler of its own.
    """
    if isinstance(train, Segments) and isinstance(valid, Segments):
        return train.and_then(valid)
    if _is_nested(train) and _is_nested(valid):
        return both(train, valid)
    parts = [_dataset(part) for part in (train, valid)]
    whole: Dataset[Any] = ConcatDataset(parts)
    if not isinstance(train, DataLoader):
        return whole
    if not isinstance(train.sampler, torch.utils.data.RandomSampler | torch.utils.data.SequentialSampler):
        raise ValueError(
            f"`data` must be 'train' for a `DataLoader` with the sampler {type(train.sampler).__name__}, which knows "
            "only its own data set"
        )
    return DataLoader(
        whole,
        batch_size=train.batch_size,
        shuffle=isinstance(train.sampler, torch.utils.data.RandomSampler),
        num_workers=train.num_workers,
        collate_fn=train.collate_fn,
        pin_memory=train.pin_memory,
        drop_last=train.drop_last,
        worker_init_fn=train.worker_init_fn,
        generator=train.generator,
    )


def _is_nested(data: Any) -> bool:
    return isinstance(data, tuple | list | Mapping)


def _dataset(data: Any) -> Dataset[Any]:
    found = data.dataset if isinstance(data, DataLoader) else _whole(data) if _is_nested(data) else data
    if isinstance(found, IterableDataset):
        raise ValueError("`data` must be 'train' for an iterable data set, which cannot be joined, got 'train+valid'")
    dataset: Dataset[Any] = found
    return dataset


def _whole(data: Any) -> Dataset[Any]:
    """Nested tensors as a data set, to be joined with another one."""
    if not all(isinstance(part, Tensor) for part in data):
        raise ValueError("`data` must be 'train' if one split is nested tensors and the other one is not")
    return TensorDataset(*data)


def _continue(tuner: SelfTuner, home: Path) -> None:
    """Load the state of an unfinished run with the same hyperparameters."""
    path = home / PROGRESS_FILE
    if path.exists():
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found["values"] != tuner.settings.hyperparameters:
            raise ValueError(f"`{path}` must be of a run with these hyperparameters; give another `folder`")
        tuner.load_state_dict(found["state"])
