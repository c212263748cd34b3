"""Bayesian optimisation for Ray Tune with the Gaussian process of scikit-optimize (skopt).

| symbol | name in code | meaning                                                                                  |
|--------|--------------|------------------------------------------------------------------------------------------|
| x      | point        | one code per searched key (`ray_deltastn.tune.search.space`)                             |
| v      | value        | the metric of a trial; None if the trial failed, diverged or did not report the metric   |
| y      | y            | what the model is told, smaller is better: ±v, at most the ceiling, then standardised    |
| ŷ      | lie          | y assumed for a running trial, replaced when its value is known                          |

Each suggestion that needs the model fits a new one to the trials. It is maximised with a random generator that
depends on the seed and the number of suggestions so far. Therefore the state to save is small, plain and complete.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from ray.tune.result import DEFAULT_METRIC
from ray.tune.search import Searcher

from ray_deltastn.tune.search.acquisition import ACQUISITIONS
from ray_deltastn.tune.search.axes import Code
from ray_deltastn.tune.search.domains import unresolved
from ray_deltastn.tune.search.model import LIES
from ray_deltastn.tune.search.proposals import Proposals
from ray_deltastn.tune.search.space import Point, SearchSpace
from ray_deltastn.tune.search.state import FORMAT, Finished, Running, parse, read_file, require, write_file

logger = logging.getLogger(__name__)


class SkOptSearch(Searcher):
    """Bayesian optimisation over Tune domains with a Gaussian process.

    The first points are a Latin hypercube. Later points maximise the acquisition function of a Gaussian process, which
    is fitted to the finished trials and assumes a value for each running one. A prior, whose weight falls with the
    number of trials, keeps the first of them from the borders of the space. A point that is running or finished is
    suggested again only if the space is finite and exhausted. Equal seeds and equal calls give equal suggestions, also
    after `save` and `restore`.

    A trial that fails, diverges (NaN, inf) or does not report the metric has no value. A second Gaussian process learns
    the probability p that a trial succeeds, and the acquisition function is multiplied by p². A value above
    `median + 3 (median - best)` counts as this bound (if median = best: as the smallest value above the median). So a
    few enormous losses do not flatten the model, as long as they are fewer than half of all.

    With more than 128 trials the kernel is fitted to the best and the newest of them. So a suggestion takes less than a
    second after 500 trials.

    Set Tune's `max_concurrent_trials`: without it, Tune asks a searcher for nearly one trial at a time.

    Args:
        space: nested dictionary with Tune domains; its constants are returned with each suggestion. None: Tune's
            `param_space` is used, and a suggestion holds only the branches that are searched (Tune adds the rest).
        metric: name of the value in the results; None: the metric that Tune names.
        mode: "min" or "max"; None: the mode that Tune names.
        points_to_evaluate: configs to suggest first, such as `best_result.config` of an earlier search; searched keys
            that are missing are drawn at random, and constants must have the values of the space.
        evaluated_rewards: values of `points_to_evaluate`, which then count as evaluated and are not suggested.
        n_initial_points: known points (finished, running or added) before the model is used; None: twice the number of
            searched keys, at least 4 and at most 10. At least two of them (one if it is 1) must have a value.
        acq_func: "EI" (expected improvement), "LCB", "PI", or "gp_hedge", which draws one of the three for each
            suggestion (all with equal probability, unlike skopt).
        random_state: seed, an integer >= 0; None: a random seed.
        lie: what is assumed for running trials: "model", the prediction of the model (the kriging believer); "mean" or
            "worst", the mean or the worst y so far (the constant liar).

    Attributes:
        running: running trials by id.
        finished: trials that have ended and points that were added, in order.
        suggest_seconds: seconds that this process has spent in `suggest`.

    Raises:
        ValueError: if an argument is out of range, a domain is not supported, or a point has an unknown key, a value
            outside its domain, or another value of a constant; the message names the key.
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
        acq_func: str = "EI",
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
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if random_state is None else int(random_state)
        self._proposals = Proposals(seed, n_initial_points, acq_func, lie)
        self._given = points, rewards
        self._unread: dict[str, Any] | None = None  # a state that was restored before the space was known
        self._space: SearchSpace | None = None
        self._fixed_space = bool(space)
        if space:
            self._set_space(SearchSpace(space, constants=True))

    # The interface of a Searcher

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take metric, mode and, if there is none yet, the search space from Tune.

        Returns:
            False if `config` has domains but a different space has been set.

        Raises:
            ValueError: if the space is not supported, or metric or mode differ from those of the known values.
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
        """Return the config of the next trial in plain Python types; a running trial gets the same config again.

        Raises:
            RuntimeError: if the space, the metric or the mode is not known.
        """
        started = time.perf_counter()
        space = self._ready()
        if trial_id not in self.running:
            running, maximise = list(self.running.values()), self._mode == "max"
            self.running[trial_id] = Running(self._proposals.next(space, self.finished, running, maximise))
        config = space.decode(self.running[trial_id].point)
        self.suggest_seconds += time.perf_counter() - started
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the last finite value, because Tune can end a paused trial (HyperBand) without a result."""
        if trial_id in self.running:
            value = self._value(result)
            self.running[trial_id].last = self.running[trial_id].last if value is None else value

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Replace the lie of a trial by its value.

        If there is no result, the last reported value counts, unless the trial failed. A failed trial that is run again
        (in a resumed experiment) gets its new value if Tune reports it; Tune's ConcurrencyLimiter does not. A trial
        that this searcher did not suggest is ignored with a warning.
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
            logger.warning("trial '%s' is ignored: this searcher did not suggest it", trial_id)
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
        """Add a config that was evaluated elsewhere; keys of `parameters` that are not searched are ignored.

        Raises:
            ValueError: if a key is missing or a value lies outside its domain.
            RuntimeError: if the space is not known yet.
        """
        del pruned, intermediate_values
        if self._space is None:
            raise RuntimeError("`space` must be known before `add_evaluated_point`: give it, or let Tune set it")
        codes = self._space.encode(parameters, "add_evaluated_point")
        self.finished.append(Finished(None, _complete(codes), None if error else _finite(value)))

    def get_state(self) -> dict[str, Any]:
        """Return everything that determines the next suggestions, with the running trials, as plain data for JSON."""
        if self._unread is not None:
            return self._unread
        return {
            "format": FORMAT,
            "space": None if self._space is None else self._space.labels,
            "metric": self._metric,
            "mode": self._mode,
            "seed": self._proposals.seed,
            "suggested": self._proposals.suggested,
            "designed": self._proposals.designed,
            "queue": self._proposals.queue,
            "running": {trial_id: [list(trial.point), trial.last] for trial_id, trial in self.running.items()},
            "finished": [[record.trial_id, list(record.point), record.value] for record in self.finished],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned; if the space is not known yet, the state is read when it is.

        Raises:
            ValueError: if it is not such a state, or it has another space, metric or mode; the message names the
                difference.
        """
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            got = repr(state.get("format")) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"`format = '{FORMAT}'` must hold for the state of a SkOptSearch, got {got}")
        if self._space is None and state.get("space") is not None:
            self._unread = state
        else:
            self._read(state)

    def save(self, checkpoint_path: str) -> None:
        """Write the state as JSON; the file is replaced whole or not at all."""
        write_file(checkpoint_path, self.get_state())

    def restore(self, checkpoint_path: str) -> None:
        """Read a file that `save` wrote, before or after the search space is set; its running trials run again.

        Raises:
            ValueError: if it is not such a file, or it has another space, metric or mode. If the space is not known
                yet, the space is compared when it is set.
        """
        state = read_file(checkpoint_path)
        try:
            self.set_state(state)
        except ValueError as error:
            raise ValueError(f"'{checkpoint_path}': {error}") from None

    # State

    def _ready(self) -> SearchSpace:
        if self._space is None:
            raise RuntimeError("`space` must be given to SkOptSearch, or as `param_space` to Tune, got neither")
        if self._metric is None and self._mode:
            self._metric = DEFAULT_METRIC  # Tune's name for the plain return value of a function trainable
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
                raise ValueError(f"`{name}` must be the same for the search and its values, got '{own}' and '{other}'")

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
            self._proposals.queue = queue

    def _read(self, state: dict[str, Any], space: SearchSpace | None = None) -> None:
        space = space or self._space
        parsed = parse(state, space)
        self._check_objective(parsed.metric, parsed.mode)
        self._metric, self._mode = self._metric or parsed.metric, self._mode or parsed.mode
        self._proposals.resume(parsed.counts, parsed.queue)
        self.running, self.finished = parsed.running, parsed.finished
        self._space, self._unread = space, None


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # raised by None, text, huge ints and tensors
        return None
    return number if np.isfinite(number) else None


def _complete(codes: list[Code | None]) -> Point:
    return tuple(code for code in codes if code is not None)
