"""The state of `SkOptSearch` as a JSON file: plain data, checked when it is read, replaced whole when it is written."""

import json
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_deltastn.training.files import write_whole
from ray_deltastn.tune.search.axes import Code
from ray_deltastn.tune.search.space import Point, SearchSpace

FORMAT = "ray_deltastn.SkOptSearch 1"


@dataclass
class Running:
    """A running trial: its point and the last finite value that it reported."""

    point: Point
    last: float | None = None


@dataclass
class Finished:
    """A trial that has ended, or a point that was evaluated elsewhere (then `trial_id` is None).

    `value` is None if the trial failed.
    """

    trial_id: str | None
    point: Point
    value: float | None


@dataclass
class State:
    """Everything that determines the next suggestions."""

    counts: tuple[int, int, int]  # the seed, the number of suggestions so far, the rows of the design used so far
    running: dict[str, Running]
    finished: list[Finished]
    queue: list[list[Code | None]]
    metric: str | None
    mode: str | None


def write_file(path: str, state: dict[str, Any]) -> None:
    """Write a state as JSON; the file is replaced whole or not at all."""
    write_whole(pathlib.Path(path), json.dumps(state, allow_nan=False))


def read_file(path: str) -> Any:
    """Read what `write_file` wrote.

    Raises:
        ValueError: if the file is not JSON; the message has its name.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"`{path}` must be a JSON file of a searcher, got {error}") from None


def parse(state: dict[str, Any], space: SearchSpace | None) -> State:
    """Check a plain state and return it with types.

    Args:
        state: what `SkOptSearch.get_state` returned.
        space: the search space; None if it is not known yet.

    Raises:
        ValueError: if the state is damaged or of another search space.
    """
    try:
        saved = state["space"]
        seed, suggested, designed = (state[name] for name in ("seed", "suggested", "designed"))
        running = {trial_id: Running(tuple(codes), last) for trial_id, (codes, last) in state["running"].items()}
        finished = [Finished(trial_id, tuple(codes), value) for trial_id, codes, value in state["finished"]]
        queue, metric, mode = [list(codes) for codes in state["queue"]], state["metric"], state["mode"]
        names = {} if saved is None else dict(saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"`state of SkOptSearch` must be complete, got a damaged one: {error!r}") from None
    if space is not None and saved is not None:
        own = space.labels
        different = [key for key in {**names, **own} if names.get(key) != own.get(key)]
        got = "; ".join(f"'{key}': {names.get(key)} saved, {own.get(key)} now" for key in different)
        require(not different, "saved space = present space", got)
        points = [list(record.point) for record in finished] + [list(trial.point) for trial in running.values()]
        sound = all(map(space.holds, points)) and all(space.holds(codes, partial=True) for codes in queue)
        require(sound, "every saved point lies in the space", "a damaged state")
    values = [record.value for record in finished] + [trial.last for trial in running.values()]
    sound = all(v is None or (type(v) is float and np.isfinite(v)) for v in values)
    require(sound, "every saved value is finite or null", "a damaged state")
    counts = (seed, suggested, designed)
    require(all(type(n) is int and n >= 0 for n in counts), "seed and counts are whole numbers >= 0", counts)
    return State(counts, running, finished, queue, metric, mode)


def require(holds: bool, rule: str, got: Any) -> None:
    """Raise ValueError with the rule and what was got, unless the rule holds."""
    if not holds:
        raise ValueError(f"`{rule}` must hold, got {got}")
