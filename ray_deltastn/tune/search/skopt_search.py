"""Bayesian optimisation for Ray Tune with scikit-optimize's Gaussian process.

| symbol | name in code | meaning                                                                                  |
|--------|--------------|------------------------------------------------------------------------------------------|
| x      | point        | one code per searched key (`skopt_space`)                                                |
| v      | value        | a trial's metric; None where it failed, diverged or lacks the metric                     |
| y      | y            | what the model is told, smaller is better: ±v, at most the ceiling, then standardised    |
| ŷ      | lie          | y assumed for a running trial, forgotten when its value comes                            |

The model is built anew, with one fit, for each suggestion that needs it, from the finished and running trials and a
random generator derived from (seed, number of suggestions so far). So the state to save is small, plain and complete.
"""

import logging
import time
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from ray.tune.result import DEFAULT_METRIC
from ray.tune.search import Searcher
from skopt.acquisition import gaussian_ei

from ray_deltastn.tune.search.axes import Code, unresolved
from ray_deltastn.tune.search.design import SUGGESTION, Design, generator
from ray_deltastn.tune.search.model import LIES, fit
from ray_deltastn.tune.search.space import Point, SearchSpace
from ray_deltastn.tune.search.state import FORMAT, Finished, Running, parse, read_file, require, write_file

logger = logging.getLogger(__name__)

ACQUISITIONS = ("EI", "LCB", "PI", "gp_hedge")


class SkOptSearch(Searcher):
    """Bayesian optimisation over Tune domains with a Gaussian process.

    The first points are a Latin hypercube. Then, for each suggestion, a Gaussian process is fitted to the finished
    trials, told a lie for each running one, and the point with the best acquisition is taken. A point that is running
    or finished is not suggested again unless a finite space is exhausted. Equal seeds and equal calls give equal
    suggestions, also across `save` and `restore`.

    Trials that fail, diverge (NaN, inf) or lack the metric count as the worst finite value so far, and are kept out
    while there is none. Values above `median + 10 (median - best)` are told as that (as the smallest value above the
    median if median = best), so that a few enormous losses do not flatten the model, as long as they are under half.

    Without `max_concurrent_trials` Tune gives a searcher nearly one trial at a time: set it.

    Args:
        space: nested dictionary with Tune domains; its constants are returned with each suggestion. None: Tune's
            `param_space` is used, and a suggestion holds its searched branches only (Tune fills in the rest).
        metric: name of the value in the results; None: Tune's.
        mode: "min" or "max"; None: Tune's.
        points_to_evaluate: configs to suggest first; keys left out are drawn at random.
        evaluated_rewards: values of `points_to_evaluate`, which then count as evaluated and are not suggested.
        n_initial_points: known points (finished, running or added) before the model is used; None: twice the number of
            searched keys, at least 4 and at most 10. At least two of them (one if it is 1) must have a value.
        acq_func: "EI", "LCB", "PI", or "gp_hedge": one of these at random for each suggestion (without skopt's gains).
        random_state: seed, an integer >= 0; None: drawn once.
        lie: y of running trials: "model", what the model predicts (the kriging believer); "mean" or "worst" of the y
            so far (the constant liar). On Branin with four trials in flight and 40 evaluations the median gap to the
            minimum was 0.02, 0.05 and over 1.

    Attributes:
        running: trials in flight by id.
        finished: trials that ended and points added, in order.
        suggest_seconds: time spent in `suggest` by this process.

    Raises:
        ValueError: for an argument out of range, a domain that is not supported, or a point with an unknown key or a
            value outside its domain; the message names the key.
    """

    CKPT_FILE_TMPL = "searcher-state-{}.json"
    _metric: str | None
    _mode: str | None

    def __init__(
        self,
        space: dict[str, Any] | None = None,
        metric: str | None = None,
        mode: str | None = None,
        *,
        points_to_evaluate: Sequence[dict[str, Any]] | None = None,
        evaluated_rewards: Sequence[float] | None = None,
        n_initial_points: int | None = None,
        acq_func: str = "gp_hedge",
        random_state: int | None = None,
        lie: Literal["model", "mean", "worst"] = "model",
    ) -> None:
        require(metric is None or isinstance(metric, str), "metric is one name", metric)
        require(mode in (None, "min", "max"), "mode in ('min', 'max')", mode)
        require(n_initial_points is None or n_initial_points >= 1, "n_initial_points >= 1", n_initial_points)
        require(acq_func in ACQUISITIONS, f"acq_func in {ACQUISITIONS}", acq_func)
        require(lie in LIES, f"lie in {LIES}", lie)
        require(random_state is None or random_state >= 0, "random_state >= 0", random_state)
        points, rewards = list(points_to_evaluate or []), list(evaluated_rewards or [])
        rule = "len(evaluated_rewards) == len(points_to_evaluate)"
        require(not rewards or len(rewards) == len(points), rule, f"{len(rewards)} and {len(points)}")
        super().__init__(metric=metric, mode=mode)
        self.running: dict[str, Running] = {}
        self.finished: list[Finished] = []
        self.suggest_seconds = 0.0
        self._acq_func, self._lie, self._n_initial = acq_func, lie, n_initial_points
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if random_state is None else int(random_state)
        self._design = Design(self._seed)
        self._suggested = 0  # suggestions so far
        self._designed = 0  # rows of the design used so far
        self._given = points, rewards
        self._queue: list[list[Code | None]] = []  # points_to_evaluate not yet suggested; None: to be drawn
        self._unread: dict[str, Any] | None = None  # a state restored before the space was known
        self._space: SearchSpace | None = None
        self._fixed_space = bool(space)
        if space:
            self._set_space(SearchSpace(space, constants=True))

    # Tune's protocol

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take metric, mode and, where there is none yet, the search space from Tune.

        Returns False where `config` holds domains although a different space has been set. Raises ValueError for a
        space that is not supported, and for another metric or mode than that of the values already held.
        """
        del spec
        searched = next(unresolved(config), None) is not None
        if self._fixed_space and searched:
            return False
        space = self._space if self._fixed_space else SearchSpace(config)
        if self._space is not None and space is not None and space.labels != self._space.labels:
            return False
        self._set_objective(metric, mode)
        if self._space is None and space is not None:
            self._set_space(space)
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Give the config of the next trial, in plain Python types; the same one again for a trial that is running.

        Raises RuntimeError where the space, the metric or the mode has not been set.
        """
        started = time.perf_counter()
        space = self._ready()
        if trial_id not in self.running:
            self.running[trial_id] = Running(self._next_point(space))
            self._suggested += 1
        config = space.decode(self.running[trial_id].point)
        self.suggest_seconds += time.perf_counter() - started
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the last finite value: Tune ends a paused trial (HyperBand) without a result."""
        if trial_id in self.running:
            value = self._value(result)
            self.running[trial_id].last = self.running[trial_id].last if value is None else value

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the trial's value in place of its lie.

        Without a result the last reported value counts, unless the trial failed. A trial that failed and is run again
        (a resumed experiment) gets its value then, where Tune says so: its ConcurrencyLimiter keeps that to itself. A
        trial this searcher did not suggest is ignored with a warning.
        """
        value = None if error else self._value(result)
        trial = self.running.pop(trial_id, None)
        if trial is not None:
            if value is None and result is None and not error:
                value = trial.last
            self.finished.append(Finished(trial_id, trial.point, value))
            return
        known = next((record for record in self.finished if record.trial_id == trial_id), None)
        if known is None:
            logger.warning("trial '%s' completed but was not suggested by this searcher: ignored", trial_id)
        elif value is not None:
            known.value = value

    def add_evaluated_point(
        self,
        parameters: dict[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """Count a config evaluated elsewhere; constants and other keys in `parameters` are ignored.

        Raises ValueError for a missing key or a value outside its domain, and RuntimeError where no space is set yet.
        """
        del pruned, intermediate_values
        if self._space is None:
            raise RuntimeError("`space or set_search_properties` must come before add_evaluated_point, got neither")
        codes = self._space.encode(parameters, "add_evaluated_point")
        self.finished.append(Finished(None, _complete(codes), None if error else _finite(value)))

    def get_state(self) -> dict[str, Any]:
        """Give all that decides the next suggestions, trials in flight included, as plain data for JSON."""
        if self._unread is not None:
            return self._unread
        return {
            "format": FORMAT,
            "space": None if self._space is None else self._space.labels,
            "metric": self._metric,
            "mode": self._mode,
            "seed": self._seed,
            "suggested": self._suggested,
            "designed": self._designed,
            "queue": self._queue,
            "running": {trial_id: [list(trial.point), trial.last] for trial_id, trial in self.running.items()},
            "finished": [[record.trial_id, list(record.point), record.value] for record in self.finished],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_state` gave; before the space is known it is kept and read when the space is set.

        Raises ValueError where it is no such state, or that of another space, metric or mode, naming the difference.
        """
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"`format = '{FORMAT}'` must hold for a searcher state")
        if self._space is None and state.get("space") is not None:
            self._unread = state
        else:
            self._read(state)

    def save(self, checkpoint_path: str) -> None:
        """Write the state as JSON; the file is replaced whole or not at all."""
        write_file(checkpoint_path, self.get_state())

    def restore(self, checkpoint_path: str) -> None:
        """Read a file of `save`, before or after the search space is set; its trials in flight are running again.

        Raises ValueError where it is no such file, or of another space, metric or mode (the space set later: then).
        """
        state = read_file(checkpoint_path)
        try:
            self.set_state(state)
        except ValueError as error:
            raise ValueError(f"'{checkpoint_path}': {error}") from None

    # Points

    def _next_point(self, space: SearchSpace) -> Point:
        rng = generator(self._seed, SUGGESTION, self._suggested)
        if self._queue:
            drawn = space.from_units(rng.uniform(size=len(space.axes)).tolist())
            return tuple(new if code is None else code for code, new in zip(self._queue.pop(0), drawn, strict=True))
        model = self._model(space, rng) if self._knows_enough(space) else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # skopt's about a repeated point, seen to below
            point = self._design_point(space) if model is None else space.from_features(model.ask())
        seen = {record.point for record in self.finished} | {trial.point for trial in self.running.values()}
        if point not in seen:
            return point
        fresh = space.unseen(seen, rng)
        if not fresh or model is None:
            return fresh[0] if fresh else point
        x = model.space.transform([space.features(candidate) for candidate in fresh])
        return fresh[int(np.argmax(gaussian_ei(x, model.models[-1], y_opt=min(model.yi))))]

    def _initial_points(self, space: SearchSpace) -> int:
        return min(10, max(4, 2 * len(space.axes))) if self._n_initial is None else self._n_initial

    def _knows_enough(self, space: SearchSpace) -> bool:
        wanted = self._initial_points(space)
        valued = sum(record.value is not None for record in self.finished)
        return len(self.finished) + len(self.running) >= wanted and valued >= min(2, wanted) and bool(space.dimensions)

    def _design_point(self, space: SearchSpace) -> Point:
        row = self._design.row(self._designed, self._initial_points(space), len(space.axes))
        self._designed += 1
        return space.from_units(row)

    def _model(self, space: SearchSpace, rng: np.random.RandomState) -> Any:
        acq_func = ACQUISITIONS[rng.randint(3)] if self._acq_func == "gp_hedge" else self._acq_func
        sign = 1.0 if self._mode == "min" else -1.0
        losses = [None if record.value is None else sign * record.value for record in self.finished]
        known = [record.point for record in self.finished]
        running = [trial.point for trial in self.running.values()]
        return fit(space, known, losses, running, self._lie, acq_func, rng)

    # State

    def _ready(self) -> SearchSpace:
        if self._space is None:
            raise RuntimeError("`space` must be given to SkOptSearch or as Tune's `param_space`, got neither")
        if self._metric is None and self._mode:
            self._metric = DEFAULT_METRIC  # what a function trainable's plain return value is called
        if not self._metric or not self._mode:
            raise RuntimeError(f"`metric` and `mode` must be given, got metric={self._metric!r}, mode={self._mode!r}")
        return self._space

    def _value(self, result: dict[str, Any] | None) -> float | None:
        return _finite((result or {}).get(self._metric or ""))

    def _set_objective(self, metric: str | None, mode: str | None) -> None:
        require(mode in (None, "min", "max"), "mode in ('min', 'max')", mode)
        require(metric is None or isinstance(metric, str), "metric is one name", metric)
        if self.finished or self.running:
            self._check_objective(metric, mode)
        self._metric, self._mode = metric or self._metric, mode or self._mode

    def _check_objective(self, metric: str | None, mode: str | None) -> None:
        for name, own, other in (("metric", self._metric, metric), ("mode", self._mode, mode)):
            if own and other and own != other:
                raise ValueError(f"`{name} of the search = {name} of its values` must hold, got '{own}' and '{other}'")

    def _set_space(self, space: SearchSpace) -> None:
        if self._unread is not None:
            self._read(self._unread, space)
            return
        points, rewards = self._given
        queue = []
        for index, point in enumerate(points):
            where = f"points_to_evaluate[{index}]"
            space.check_keys(point, where)
            queue.append(space.encode(point, where, partial=not rewards))
        self._space = space
        if rewards:
            self.finished += [Finished(None, _complete(c), _finite(r)) for c, r in zip(queue, rewards, strict=True)]
        else:
            self._queue = queue

    def _read(self, state: dict[str, Any], space: SearchSpace | None = None) -> None:
        space = space or self._space
        parsed = parse(state, space)
        self._check_objective(parsed.metric, parsed.mode)
        self._metric, self._mode = self._metric or parsed.metric, self._mode or parsed.mode
        self._seed, self._suggested, self._designed = parsed.counts
        self.running, self.finished, self._queue = parsed.running, parsed.finished, parsed.queue
        self._space, self._unread, self._design = space, None, Design(self._seed)


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # what None, text, huge ints and tensors raise
        return None
    return number if np.isfinite(number) else None


def _complete(codes: list[Code | None]) -> Point:
    return tuple(code for code in codes if code is not None)
