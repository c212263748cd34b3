"""Tune's schedulers by name, set up for trials that report once an epoch."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.schedulers.pb2 import PB2
from ray.tune.search.sample import Categorical, Domain, Float, Integer

from ray_deltastn.tune.folder.log import Report
from ray_deltastn.tune.nested import flat

#: Names that `make_scheduler` knows: `fifo` lets every trial run to its end.
SCHEDULERS = ("fifo", "asha", "hyperband", "median", "pbt", "pb2")
#: Schedulers that pause trials: all of them are alive at once, and those that do not fit wait.
PAUSING = ("hyperband", "pbt", "pb2")
#: Schedulers that change options of running trials.
CHANGING = ("pbt", "pb2")
#: Options that a trial may change while it runs; the others decide its task, network or method.
MUTABLE = ("lr", "momentum", "hyper_lr", "scale_lr", "response_lr", "entropy_weight", "clip_grad", "hyperparameters")
_TIME = "training_iteration"


def make_scheduler(name: str, space: Mapping[str, Any], *, reports: int) -> TrialScheduler | None:
    """A scheduler for `tune.run(scheduler=…)`; Tune gives it metric and mode.

    A trial that is stopped early has its last report as its result. `asha` and `median` stop trials; `hyperband` pauses
    them and lets the best third go on; `pbt` copies weights, response, λ, σ and optimisers from good trials to bad
    ones and changes searched options (`MUTABLE`) at random; `pb2` does the same with changes that a Gaussian process
    proposes, for numbers on continuous ranges. Both are synchronous: all trials stop at the same report before any is
    copied. Otherwise Tune would perturb nothing with more trials than slots, and what is copied would hang on which
    trial is faster. Tune does not save a scheduler's state: after `--resume` it begins to compare anew.

    Args:
        name: one of `SCHEDULERS`.
        space: config of a trial with Tune domains.
        reports: reports of a whole trial.

    Returns:
        The scheduler; None for `fifo`.

    Raises:
        ValueError: if the name is unknown, or `pbt` or `pb2` has nothing that it could change.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"`scheduler` must be one of {', '.join(SCHEDULERS)}, got {name!r}")
    if name == "fifo":
        return None
    few = max(1, reports // 8)
    changed = mutations(space, name) if name in CHANGING else {}
    if name == "asha":
        return ASHAScheduler(time_attr=_TIME, max_t=reports, grace_period=few, reduction_factor=3)
    if name == "hyperband":
        return HyperBandScheduler(time_attr=_TIME, max_t=reports, reduction_factor=3)
    if name == "median":
        return MedianStoppingRule(time_attr=_TIME, grace_period=few, min_samples_required=3)
    common: dict[str, Any] = {
        "time_attr": _TIME,
        "perturbation_interval": few,
        "custom_explore_fn": functools.partial(within, changed),
        "synch": True,
    }
    if name == "pb2":
        return BanditPopulation(hyperparam_bounds=bounds(changed), **common)
    return Population(hyperparam_mutations=changed, **common)


class Population(PopulationBasedTraining):
    """Tune's synchronous PBT, which does not wait for trials that have ended and copies at equal reports only.

    Tune's own looks for the trial that comes last to a report and copies then. If that one ends there, or has failed
    before, nobody comes last, and those that are paused would wait for ever. And it takes for granted that all are at
    the same report: after a resumption they need not be, and a trial that took over the state of one further on would
    skip reports.
    """

    _next_perturbation_sync: float

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Pause a trial until all are at its report; one behind others goes on until it is not (called by Tune)."""
        live = tune_controller.get_live_trials()
        for other in [other for other in live if other.is_finished()]:
            live.discard(other)
        time, state = result[_TIME], self._trial_state[trial]
        if time < max(self._trial_state[other].last_train_time for other in {trial, *live}):
            return str(TrialScheduler.CONTINUE)
        if time - state.last_perturbation_time >= self._perturbation_interval:
            self._next_perturbation_sync = max(self._next_perturbation_sync, time)
        return str(super().on_trial_result(tune_controller, trial, result))

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The trial that is furthest behind, after those that wait for nobody have been copied (called by Tune)."""
        chosen = super().choose_trial_to_run(tune_controller)
        waiting = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]
        if chosen is None and waiting and all(trial.status == Trial.PAUSED for trial in waiting):
            furthest = max(waiting, key=lambda trial: self._trial_state[trial].last_train_time)
            self.on_trial_result(tune_controller, furthest, furthest.last_result)
            # After a resumption Tune's own count may be behind all of them.
            latest = max(self._trial_state[trial].last_train_time for trial in waiting)
            if self._next_perturbation_sync <= latest:
                self._next_perturbation_sync = latest + self._perturbation_interval
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen


class BanditPopulation(Population, PB2):
    """Tune's synchronous PB2 (Parker-Holder et al. 2020), which does not wait for trials that have ended either."""

    _worst = -math.inf

    def _save_trial_state(self, state: Any, time: int, result: dict[str, Any], trial: Trial) -> Any:
        # The Gaussian process takes finite rewards only: a diverged trial counts as the worst that did not.
        reward = self._metric_op * result[self._metric]
        if math.isfinite(reward):
            self._worst = reward if math.isinf(self._worst) else min(self._worst, reward)
        elif math.isfinite(self._worst):
            result = {**result, self._metric: self._metric_op * self._worst}
        else:
            result = {**result, self._metric: 0.0}
        return super()._save_trial_state(state, time, result, trial)


def bounds(changed: Mapping[str, Any]) -> dict[str, Any]:
    """The ends of the ranges that `mutations` names, for `pb2`.

    Raises:
        ValueError: if one is no continuous range.
    """
    found: dict[str, Any] = {}
    for key, value in changed.items():
        if isinstance(value, Mapping):
            found[key] = bounds(value)
        elif isinstance(value, Float):
            found[key] = [value.lower, value.upper]
        else:
            raise ValueError(f"`scheduler: pb2` changes numbers on a continuous range only, got {value} for '{key}'")
    return found


def lineage(global_log: Path, trials: Iterable[Trial], reports: Mapping[str, Sequence[Report]]) -> pd.DataFrame:
    """Which trial took over which one's state, when, and which options it changed, from the log of `pbt`.

    Args:
        global_log: Tune's `pbt_global.txt`, which `pb2` writes too.
        trials: the trials of the experiment.
        reports: all reports of each trial, see `read_log`.

    Returns:
        One row per copy: `trial_id`, `training_iteration` of its first report afterwards (none if it was changed again
        before), `copied_from`, and `from/<option>`, `to/<option>`.
    """
    ids = {trial.experiment_tag.split("@")[0]: trial.trial_id for trial in trials}
    place = dict.fromkeys(reports, 0)  # of the last copy in a trial's reports
    rows = []
    for line in global_log.read_text().splitlines():
        tag, source, iteration, _, old, new = json.loads(line)
        before, after = flat(old), flat(new)
        changed = [name for name in after if before.get(name) != after[name]]
        # The log's own iteration is that of the last report before, or sometimes of the one before that: a trial's
        # reports know their config.
        target = ids.get(tag, tag)
        mine = reports.get(target, ())
        later = (i for i in range(place.get(target, 0), len(mine)) if mine[i].iteration > iteration)
        matching = (i for i in later if _agree(flat(mine[i].config), after))
        first = next(matching, None)
        if first is not None:
            place[target] = first + 1
        row = {
            "trial_id": target,
            "training_iteration": None if first is None else mine[first].iteration,
            "copied_from": ids.get(source, source),
        }
        for name in changed:
            row |= {f"from/{name}": before.get(name), f"to/{name}": after[name]}
        rows.append(row)
    return pd.DataFrame(rows)


def within(changed: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A perturbed config with its values back inside their domains: Tune multiplies them by 0.8 or 1.2, unbounded.

    Args:
        changed: what is perturbed, see `mutations`.
        config: the perturbed config.
    """
    for key, domain in changed.items():
        if isinstance(domain, Mapping):
            within(domain, config[key])
        elif isinstance(domain, Domain):
            whole = isinstance(domain, Integer)
            highest = domain.upper - 1 if whole else math.nextafter(domain.upper, domain.lower)  # exclusive in Tune
            value = min(max(config[key], domain.lower), highest)
            config[key] = round(value) if whole else value
    return config


def _agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == value for name, value in other.items())


def mutations(space: Mapping[str, Any], scheduler: str = "pbt") -> dict[str, Any]:
    """The searched options that a running trial may change.

    Raises:
        ValueError: if there is none.
    """

    def domains(part: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in part.items():
            if isinstance(value, Mapping):
                inner = domains(value)
                found |= {key: inner} if inner else {}
            elif isinstance(value, Categorical):
                found[key] = list(value.categories)
            elif isinstance(value, Domain):
                found[key] = value
        return found

    found = domains({key: value for key, value in space.items() if key in MUTABLE})
    if not found:
        raise ValueError(f"`scheduler: {scheduler}` needs one of {', '.join(MUTABLE)} in `search`, got none")
    return found
