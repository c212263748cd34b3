"""Population-based training: Tune's schedulers PBT and PB2, synchronous, within the searched domains."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.schedulers.pb2 import PB2
from ray.tune.search.sample import Domain

from ray_deltastn.tune.folder.log import Report
from ray_deltastn.tune.nested import flat
from ray_deltastn.tune.search.axes import Choice, Multiples
from ray_deltastn.tune.search.domains import read_domain

#: Options that a trial may change while it runs; all others determine its task, network or method.
MUTABLE = ("lr", "momentum", "hyper_lr", "scale_lr", "response_lr", "entropy_weight", "clip_grad", "hyperparameters")
#: The report key that counts the reports of a trial.
TIME = "training_iteration"


class Population(PopulationBasedTraining):
    """Tune's synchronous PBT, which does not wait for finished trials and copies only at equal reports.

    Tune's own class copies when the last trial arrives at a report. It has two faults. If the last trial ends at that
    report, or has failed before, no trial is the last one, and the paused trials wait forever. And it assumes that all
    trials are at the same report: after a resumed experiment they may not be, and a trial that takes over the state of
    a later report would skip reports.
    """

    _next_perturbation_sync: float

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Pause a trial until all others have reached its report (called by Tune)."""
        live = tune_controller.get_live_trials()
        for other in [other for other in live if other.is_finished()]:
            live.discard(other)
        time, state = result[TIME], self._trial_state[trial]
        if time < max(self._trial_state[other].last_train_time for other in {trial, *live}):
            return str(TrialScheduler.CONTINUE)
        if time - state.last_perturbation_time >= self._perturbation_interval:
            self._next_perturbation_sync = max(self._next_perturbation_sync, time)
        return str(super().on_trial_result(tune_controller, trial, result))

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial with the fewest reports (called by Tune).

        If all unfinished trials are paused, no further report can start the copying; then it starts here.
        """
        chosen = super().choose_trial_to_run(tune_controller)
        waiting = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]
        if chosen is None and waiting and all(trial.status == Trial.PAUSED for trial in waiting):
            furthest = max(waiting, key=lambda trial: self._trial_state[trial].last_train_time)
            self.on_trial_result(tune_controller, furthest, furthest.last_result)
            # In a resumed experiment the next report at which Tune copies may be one that all trials have passed.
            latest = max(self._trial_state[trial].last_train_time for trial in waiting)
            if self._next_perturbation_sync <= latest:
                self._next_perturbation_sync = latest + self._perturbation_interval
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen


class BanditPopulation(Population, PB2):
    """Tune's synchronous PB2 (Parker-Holder et al. 2020), with the same two corrections as `Population`."""

    _worst = -math.inf

    def _save_trial_state(self, state: Any, time: int, result: dict[str, Any], trial: Trial) -> Any:
        # The Gaussian process needs finite rewards: a diverged trial counts as the worst trial that did not diverge.
        assert self._metric is not None  # Tune sets both before the first report
        assert self._metric_op is not None
        reward = self._metric_op * result[self._metric]
        if math.isfinite(reward):
            self._worst = reward if math.isinf(self._worst) else min(self._worst, reward)
        elif math.isfinite(self._worst):
            result = {**result, self._metric: self._metric_op * self._worst}
        else:
            result = {**result, self._metric: 0.0}
        return super()._save_trial_state(state, time, result, trial)


def mutations(space: Mapping[str, Any], scheduler: str = "pbt") -> dict[str, Any]:
    """Return the searched options that a running trial may change: domains, and the categories of choices.

    Args:
        space: config of a trial with Tune domains.
        scheduler: name of the scheduler, for the error message.

    Raises:
        ValueError: if there is none, or a domain is not supported.
    """

    def domains(part: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in part.items():
            if isinstance(value, Mapping):
                inner = domains(value, f"{prefix}{key}.")
                found |= {key: inner} if inner else {}
            elif isinstance(value, Domain):
                axis = read_domain(f"{prefix}{key}", value)
                found[key] = list(axis.categories) if isinstance(axis, Choice) else value
        return found

    found = domains({key: value for key, value in space.items() if key in MUTABLE}, "")
    if not found:
        raise ValueError(f"`scheduler: {scheduler}` needs one of {', '.join(MUTABLE)} in `search`, got none")
    return found


def bounds(changed: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the smallest and largest value of the domains that `mutations` found, for PB2.

    Args:
        changed: what `mutations` returned, or a part of it.
        prefix: the keys that lead to this part, for the error message.

    Raises:
        ValueError: if a domain is a choice or has whole numbers: PB2 changes real numbers only.
    """
    found: dict[str, Any] = {}
    for key, value in changed.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found[key] = bounds(value, f"{name}.")
            continue
        axis = None if isinstance(value, list) else read_domain(name, value)
        if axis is None or isinstance(axis, Choice) or (isinstance(axis, Multiples) and axis.whole):
            got = f"choice({value})" if axis is None else axis.label
            raise ValueError(f"`scheduler: pb2` changes real numbers only (uniform, …), got {got} for '{name}'")
        found[key] = [axis.least, axis.largest] if isinstance(axis, Multiples) else [axis.low, axis.high]
    return found


def within(changed: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return a perturbed config with each changed value moved to the nearest value of its domain.

    It is needed because PBT multiplies values by 0.8 or 1.2 and PB2 ignores steps.

    Args:
        changed: what is perturbed, see `mutations`.
        config: the perturbed config, changed in place.
    """
    for key, domain in changed.items():
        if isinstance(domain, Mapping):
            within(domain, config[key])
        elif isinstance(domain, Domain):
            config[key] = read_domain(key, domain).nearest(config[key])
    return config


def lineage(global_log: Path, trials: Iterable[Trial], reports: Mapping[str, Sequence[Report]]) -> pd.DataFrame:
    """Return which trial took over the state of which other one, when, and which options it changed.

    Args:
        global_log: Tune's `pbt_global.txt`, which PB2 writes too.
        trials: the trials of the experiment.
        reports: all reports of each trial, see `read_log`.

    Returns:
        One row per copy: `trial_id`; `training_iteration` of its first report after the copy (empty if the trial was
        changed again before it reported); `copied_from`; and `from/<option>`, `to/<option>`.
    """
    ids = {trial.experiment_tag.split("@")[0]: trial.trial_id for trial in trials}
    place = dict.fromkeys(reports, 0)  # per trial, the index after the report that belongs to its last copy
    rows: list[dict[str, Any]] = []
    for line in global_log.read_text().splitlines():
        tag, source, iteration, _, old, new = json.loads(line)
        before, after = flat(old), flat(new)
        changed = [name for name in after if before.get(name) != after[name]]
        # The iteration in the log is that of the last report before the copy, or of the one before that. So the
        # report after the copy is found by its config, which each report has.
        target = ids.get(tag, tag)
        own = reports.get(target, ())
        later = (i for i in range(place.get(target, 0), len(own)) if own[i].iteration > iteration)
        matching = (i for i in later if _agree(flat(own[i].config), after))
        first = next(matching, None)
        if first is not None:
            place[target] = first + 1
        row = {
            "trial_id": target,
            "training_iteration": None if first is None else own[first].iteration,
            "copied_from": ids.get(source, source),
        }
        for name in changed:
            row |= {f"from/{name}": before.get(name), f"to/{name}": after[name]}
        rows.append(row)
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether a config has all values of another one."""
    return all(one.get(name) == value for name, value in other.items())
