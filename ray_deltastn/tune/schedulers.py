"""Tune's schedulers by name, set up for trials that report once an epoch."""

from __future__ import annotations

import json
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
from ray.tune.search.sample import Domain

from ray_deltastn.tune.report_log import Report, flat

#: Names that `make_scheduler` knows: `fifo` lets every trial run to its end.
SCHEDULERS = ("fifo", "asha", "hyperband", "median", "pbt")
#: Schedulers that pause trials: all of them are alive at once, and those that do not fit wait.
PAUSING = ("hyperband", "pbt")
#: Options that a trial may change while it runs; the others decide its task, network or method.
MUTABLE = ("lr", "momentum", "hyper_lr", "scale_lr", "response_lr", "entropy_weight", "clip_grad", "hyperparameters")
_TIME = "training_iteration"


def make_scheduler(
    name: str, space: Mapping[str, Any], *, reports: int, num_samples: int, max_concurrent: int
) -> TrialScheduler | None:
    """A scheduler for `tune.run(scheduler=…)`; Tune gives it metric and mode.

    A trial that is stopped early has its last report as its result. `asha` and `median` stop trials; `hyperband` pauses
    them and lets the best third go on; `pbt` copies weights, response, λ, σ and optimisers from good trials to bad
    ones and changes searched options (`MUTABLE`). With more trials than slots `pbt` runs synchronously: Tune would
    otherwise never perturb. Tune does not save a scheduler's state: after `--resume` it begins to compare anew.

    Args:
        name: one of `SCHEDULERS`.
        space: config of a trial with Tune domains.
        reports: reports of a whole trial.
        num_samples: trials planned.
        max_concurrent: trials at a time.

    Returns:
        The scheduler; None for `fifo`.

    Raises:
        ValueError: if the name is unknown, or `pbt` has nothing that it could change.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"`scheduler` must be one of {', '.join(SCHEDULERS)}, got {name!r}")
    if name == "fifo":
        return None
    few = max(1, reports // 8)
    if name == "asha":
        return ASHAScheduler(time_attr=_TIME, max_t=reports, grace_period=few, reduction_factor=3)
    if name == "hyperband":
        return HyperBandScheduler(time_attr=_TIME, max_t=reports, reduction_factor=3)
    if name == "median":
        return MedianStoppingRule(time_attr=_TIME, grace_period=few, min_samples_required=3)
    return PopulationBasedTraining(
        time_attr=_TIME,
        perturbation_interval=few,
        hyperparam_mutations=mutations(space),
        synch=num_samples > max_concurrent,
    )


def lineage(global_log: Path, trials: Iterable[Trial], reports: Mapping[str, Sequence[Report]]) -> pd.DataFrame:
    """Which trial took over which one's state, when, and which options it changed, from the log of `pbt`.

    Args:
        global_log: Tune's `pbt_global.txt`.
        trials: the trials of the experiment.
        reports: all reports of each trial, see `read_log`.

    Returns:
        One row per copy: `trial_id`, `training_iteration` of its first report afterwards (none if it was changed again
        before), `copied_from`, and `from/<option>`, `to/<option>`.
    """
    ids = {trial.experiment_tag.split("@")[0]: trial.trial_id for trial in trials}
    rows = []
    for line in global_log.read_text().splitlines():
        target, source, _, _, old, new = json.loads(line)
        before, after = flat(old), flat(new)
        changed = [name for name in after if before.get(name) != after[name]]
        # The log's own iteration is sometimes that of the report before: a trial's reports know their config.
        first = next(
            (r.iteration for r in reports.get(ids.get(target, ""), ()) if _agree(flat(r.config), after, changed)), None
        )
        row = {
            "trial_id": ids.get(target, target),
            "training_iteration": first,
            "copied_from": ids.get(source, source),
        }
        for name in changed:
            row |= {f"from/{name}": before.get(name), f"to/{name}": after[name]}
        rows.append(row)
    return pd.DataFrame(rows)


def _agree(one: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str]) -> bool:
    return all(one.get(name) == other[name] for name in names)


def mutations(space: Mapping[str, Any]) -> dict[str, Any]:
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
            elif isinstance(value, Domain):
                found[key] = value
        return found

    found = domains({key: value for key, value in space.items() if key in MUTABLE})
    if not found:
        raise ValueError(f"`scheduler: pbt` needs one of {', '.join(MUTABLE)} in `search`, got none")
    return found
