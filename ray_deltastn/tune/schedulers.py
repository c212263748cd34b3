"""Tune's schedulers by name, set up for trials that report once an epoch, and the budget of an experiment."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ray.tune import Stopper
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, MedianStoppingRule, TrialScheduler

from ray_deltastn.tune.population import TIME, BanditPopulation, Population, bounds, mutations, within
from ray_deltastn.tune.scheduler_names import CHANGING, SCHEDULERS


def make_scheduler(name: str, space: Mapping[str, Any], *, reports: int, grace: int = 1) -> TrialScheduler | None:
    """Return a scheduler for `tune.TuneConfig(scheduler=…)`; Tune sets its metric and mode.

    - `asha` and `median` stop trials early; the last report of a stopped trial is its result.
    - `hyperband` pauses trials, and the best third continues.
    - `pbt` copies weights, response, λ, σ and optimisers from good trials to bad ones, and changes searched options
      (`MUTABLE`) at random.
    - `pb2` does the same, but a Gaussian process proposes the changes; it changes real numbers only.

    `pbt` and `pb2` are synchronous: all trials stop at the same report before any is copied. Otherwise Tune would never
    copy if there are more trials than slots, and the result would depend on which trial is faster. Tune does not save
    the state of a scheduler: in a resumed experiment it starts again without the earlier comparisons.

    Args:
        name: one of `SCHEDULERS`.
        space: config of a trial with Tune domains.
        reports: number of reports of a whole trial.
        grace: number of reports before which no trial is stopped or copied. λ moves only after the warm-up, so that
            earlier losses say nothing about what a trial will learn.

    Returns:
        The scheduler; None for `fifo`.

    Raises:
        ValueError: if the name is unknown, or there is no option that `pbt` or `pb2` can change.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"`scheduler` must be one of {', '.join(SCHEDULERS)}, got {name!r}")
    if name == "fifo":
        return None
    grace = min(grace, reports)
    few = max(1, reports // 8)
    first = max(few, grace)
    changed = mutations(space, name) if name in CHANGING else {}
    if name == "asha":
        return ASHAScheduler(time_attr=TIME, max_t=reports, grace_period=first, reduction_factor=3)
    if name == "hyperband":
        return _HyperBand(grace, time_attr=TIME, max_t=reports, reduction_factor=3)
    if name == "median":
        return MedianStoppingRule(time_attr=TIME, grace_period=first, min_samples_required=3)
    common: dict[str, Any] = {
        "time_attr": TIME,
        "perturbation_interval": few,
        "custom_explore_fn": functools.partial(within, changed),
        "synch": True,
    }
    if name == "pb2":
        population = BanditPopulation(hyperparam_bounds=bounds(changed), **common)
        # PB2 has no option for this, unlike its base class.
        population._burn_in_period, population._next_perturbation_sync = grace, first
        return population
    return Population(hyperparam_mutations=changed, burn_in_period=grace, **common)


class _HyperBand(HyperBandScheduler):
    """Tune's HyperBand, whose first cut of a bracket is not before `grace` reports."""

    def __init__(self, grace: int, *, max_t: int, reduction_factor: float, **options: Any) -> None:
        super().__init__(max_t=max_t, reduction_factor=reduction_factor, **options)
        # Ray has no option for this: it is the report of the first cut in bracket s.
        self._get_r0 = functools.partial(_first_cut, grace, max_t, reduction_factor)


def _first_cut(grace: int, max_t: int, reduction_factor: float, s: int) -> int:
    found = int(max_t * reduction_factor ** (-s))
    return max(found, grace) if found else 0


class EpochBudget(Stopper):
    """Ends the experiment when its trials together have trained a given number of epochs.

    Each running trial ends after the report on which it works at that moment. So the experiment can exceed the budget
    by one report per running trial.

    Args:
        epochs: the budget.
        spent: epochs by trial of earlier runs of the same experiment.
    """

    def __init__(self, epochs: int, spent: Mapping[str, int] | None = None) -> None:
        self.epochs = epochs
        self.spent = dict(spent or {})

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Count a report (called by Tune); returns False, because no trial is stopped alone.

        A restored trial that repeats an epoch counts it once.
        """
        self.spent[trial_id] = int(result["epoch"])
        return False

    def stop_all(self) -> bool:
        """Whether the budget is spent."""
        return sum(self.spent.values()) >= self.epochs
