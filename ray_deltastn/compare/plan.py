"""The experiments of a comparison: one per method and seed, and one for all single runs together.

A single run trains for the whole budget, with the outer options of `single`.

| method                             | trains                                                                        |
|------------------------------------|-------------------------------------------------------------------------------|
| `fixed`                            | a single run with constant initial hyperparameters: the result without tuning |
| `grid`, `random`, `bo`             | `trials` trials; the searcher proposes hyperparameters and outer options      |
| `asha`                             | random trials; bad ones end early, new ones start until the budget is spent   |
| `pbt`                              | a population of `trials` trials                                               |
| `stn`, `centered-stn`, `delta-stn` | a single run that tunes its hyperparameters                                   |
| `hybrid`                           | `trials` trials; `bo` proposes the outer options, Δ-STN tunes hyperparameters |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from ray_deltastn.compare.contenders import CONTENDERS
from ray_deltastn.training.settings import Settings
from ray_deltastn.tune.config import ExperimentConfig, TuneSection, first_error, unknown_key
from ray_deltastn.tune.nested import merged, nest

#: Options of `Settings` that the comparison sets. With `patience` or `min_lr`, a run could end before its budget is
#: spent.
FIXED = ("method", "seed", "steps_per_report", "hyperparameters", "patience", "min_lr", "monitor", "monitor_mode")
#: Options that only self-tuning methods read.
TUNING = (
    "preset",
    "domains",
    "response_lr",
    "response_optimizer",
    "response_fraction",
    "antithetic",
    "perturbations",
    "sub_batches",
    "per_scale",
    "hyper_pass",
    "response_clip",
    "hyper_clip",
    "hyper_lr",
    "hyper_decay",
    "scale_lr",
    "hyper_optimizer",
    "entropy_weight",
    "train_interval",
    "valid_interval",
    "warmup",
    "warmup_steps",
    "tune_scale",
    "valid_batch_size",
    "implicit_solver",
    "implicit_steps",
    "implicit_damping",
)


class CompareConfig(ExperimentConfig):
    """A comparison: the sections of an experiment, and four more keys.

    `search` holds the outer options. Methods with constant hyperparameters also search all hyperparameters of the
    task, each in its own range. In `tune`, the comparison sets the searcher, the scheduler, the number of trials, the
    budget, the metric, the seed and the warm start.

    Attributes:
        trials: number of trials of a searching method; the budget is `trials` times `train.epochs`, in epochs.
        single: values of the outer options for single runs.
        self_tuned: options of `Settings` that only self-tuning methods get, such as `hyper_lr`.
        self_tuned_cost: an epoch of a self-tuning method counts as so many epochs of the budget. With 1, all methods
            train equally many epochs. With 3, which is about what Δ-STN costs, all take about equally many
            device-seconds.
    """

    trials: int = Field(default=8, ge=1, strict=True)
    single: dict[str, Any] = Field(default_factory=dict)
    self_tuned: dict[str, Any] = Field(default_factory=dict)
    self_tuned_cost: float = Field(default=1.0, ge=1.0, strict=True)

    def model_post_init(self, context: Any) -> None:
        """Check rules that involve several sections.

        Raises:
            ValueError: if a rule is broken.
        """
        self._check_sections()
        super().model_post_init(context)
        own = {"searcher", "scheduler", "num_samples", "budget", "metric", "mode", "warm_start", "seed"}
        given = sorted(own & self.tune.model_fields_set)
        if given:
            raise ValueError(
                f"`tune.{given[0]}` must not be given, the comparison sets it; got {getattr(self.tune, given[0])!r}"
            )
        try:
            plan(self, [name for name in CONTENDERS if self.search or name != "hybrid"], 1)
        except ValidationError as error:
            raise ValueError(first_error(error, ExperimentConfig)) from None

    def _check_sections(self) -> None:
        """Raise ValueError unless every option is in a section that allows it, and in one section only."""
        if self.control:
            raise ValueError("`control` must not be given: the method `fixed` is the control of a comparison; got true")
        if "epochs" not in self.train:
            raise ValueError("`train.epochs` must be given, got none: the budget is `trials` times `train.epochs`")
        for section in ("train", "search", "self_tuned"):
            for key in getattr(self, section):
                name = key.split(".")[0]
                if section == "search" and name == "hyperparameters":
                    raise ValueError(
                        f"`search.{key}` must not be given, got {self.search[key]!r}: methods with constant "
                        "hyperparameters search all of them, each in its own range"
                    )
                if name in FIXED or (name == "epochs" and section != "train"):
                    got = getattr(self, section)[key]
                    raise ValueError(f"`{section}.{key}` must not be given, the comparison sets it; got {got!r}")
                if section == "search" and name in TUNING:
                    raise ValueError(
                        f"`search.{key}` must be an option of all methods, got one that only self-tuning methods read; "
                        "move it to `self_tuned`"
                    )
        missing = [name for name in self.search if name not in self.single]
        if missing:
            raise ValueError(f"`single` must hold every option of `search`, got no value for `{missing[0]}`")
        unknown = [name for name in self.single if name not in self.search]
        if unknown:
            raise ValueError(unknown_key(f"single.{unknown[0]}", [f"single.{name}" for name in self.search]))
        both = [name for name in self.self_tuned if name in self.search or name in self.train]
        if both:
            raise ValueError(f"`{both[0]}` must be in only one of `train`, `search` and `self_tuned`, got it in two")
        for name in self.self_tuned:
            if name not in Settings.names():
                raise ValueError(unknown_key(f"self_tuned.{name}", [f"self_tuned.{n}" for n in Settings.names()]))

    @property
    def budget(self) -> int:
        """Training epochs of each method; a self-tuning method has fewer if `self_tuned_cost` is above 1."""
        return self.trials * int(self.train["epochs"])

    def trials_of(self, method: str) -> int:
        """Number of trials of a searching method, at least one."""
        return max(1, round(self.trials / (self.self_tuned_cost if CONTENDERS[method].tuned else 1.0)))

    def budget_of(self, method: str) -> int:
        """Training epochs of a method."""
        if CONTENDERS[method].searcher:
            return self.trials_of(method) * int(self.train["epochs"])
        return max(1, round(self.budget / (self.self_tuned_cost if CONTENDERS[method].tuned else 1.0)))


@dataclass(frozen=True)
class Planned:
    """One experiment of a comparison.

    Attributes:
        methods: names in `CONTENDERS`; single runs of several methods share one experiment.
        seeds: seeds of the trials. A searching method has one, which is also the seed of its searcher.
        config: configuration of the experiment.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    config: ExperimentConfig

    @property
    def name(self) -> str:
        """Name of the folder, such as `random-s0` or `stn+delta-stn-s0+1+2`."""
        return f"{'+'.join(self.methods)}-s{'+'.join(map(str, self.seeds))}"

    @property
    def single(self) -> bool:
        """Whether the experiment holds single runs, one trial for each method and seed."""
        return CONTENDERS[self.methods[0]].searcher is None


def plan(config: CompareConfig, methods: Sequence[str], seeds: int, begun: Iterable[str] = ()) -> list[Planned]:
    """The experiments of a comparison, single runs first.

    Args:
        config: the comparison.
        methods: names in `CONTENDERS`.
        seeds: number of seeds; they are 0, 1, ….
        begun: names of the experiments that have already started. Those that include a requested method and seed are
            kept unchanged. Only the missing methods and seeds are added.

    Raises:
        ValueError: if a method is unknown or given twice, or there is no method or seed.
    """
    for name in filter(None, methods):
        if name not in CONTENDERS:
            near = difflib.get_close_matches(name, CONTENDERS, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"`--methods` must be some of {', '.join(CONTENDERS)}, got {name!r}{hint}")
    if len(set(methods)) < len(methods) or not methods or not all(methods):
        raise ValueError(f"`--methods` must name each method once, got {','.join(methods) or 'none'}")
    if seeds < 1:
        raise ValueError(f"`--seeds >= 1` must hold, got {seeds}")
    ordered = [name for name in CONTENDERS if name in methods]
    if "hybrid" in methods and not config.search:
        raise ValueError("`search` must hold an outer option for hybrid, got none: all its trials would be the same")
    missing = {(name, seed) for name in ordered for seed in range(seeds)}
    planned = []
    for pairs in sorted(map(_pairs, begun)):
        if missing.intersection(pairs):
            planned.append(_planned(config, *(tuple(dict.fromkeys(part)) for part in zip(*pairs, strict=True))))
            missing.difference_update(pairs)
    groups: dict[tuple[str, ...], list[int]] = {}
    for seed in range(seeds):
        single = [name for name in ordered if CONTENDERS[name].searcher is None and (name, seed) in missing]
        for epochs in dict.fromkeys(map(config.budget_of, single)):
            groups.setdefault(tuple(n for n in single if config.budget_of(n) == epochs), []).append(seed)
    planned += [_planned(config, group, tuple(of)) for group, of in groups.items()]
    searching = [(name, seed) for seed in range(seeds) for name in ordered if CONTENDERS[name].searcher]
    planned += [_planned(config, (name,), (seed,)) for name, seed in searching if (name, seed) in missing]
    return sorted(planned, key=lambda one: not one.single)


def _pairs(name: str) -> list[tuple[str, int]]:
    """Methods and seeds of an experiment, from its folder's name; empty if the name has another form."""
    methods, _, seeds = name.rpartition("-s")
    if not all(method in CONTENDERS for method in methods.split("+")) or not seeds.replace("+", "").isdigit():
        return []
    return [(method, int(seed)) for method in methods.split("+") for seed in seeds.split("+")]


def _planned(config: CompareConfig, methods: tuple[str, ...], seeds: tuple[int, ...]) -> Planned:
    single = CONTENDERS[methods[0]].searcher is None
    experiment = _single(config, methods, seeds) if single else _searching(config, methods[0], seeds[0])
    return Planned(methods, seeds, experiment)


def _single(config: CompareConfig, methods: Sequence[str], seeds: Sequence[int]) -> ExperimentConfig:
    chosen = nest(config.single)
    options = chosen.pop("options", {})
    return ExperimentConfig(
        task=config.task,
        options=merged(config.options, options),
        train=merged({**config.train, **config.self_tuned}, {**chosen, "epochs": config.budget_of(methods[0])}),
        search={"method": f"choice({list(methods)!r})", "seed": f"choice({list(seeds)!r})"},
        tune=_tune(config, searcher="grid", num_samples=len(methods) * len(seeds), seed=0),
    )


def _searching(config: CompareConfig, name: str, seed: int) -> ExperimentConfig:
    contender = CONTENDERS[name]
    constant = not contender.tuned
    own: dict[str, Any] = {"num_samples": config.trials_of(name)}
    if contender.scheduler == "asha":
        # This many trials spend the budget even if each of them ends after its first epoch.
        own |= {"num_samples": config.budget, "budget": config.budget}
    if contender.scheduler == "pbt":
        # The best loss so far would hide that a mutation has made a trial worse.
        own |= {"metric": "valid_loss"}
    if contender.searcher == "bo" and config.tune.max_concurrent is None:
        # Otherwise the searcher could propose all trials before the first one has a result.
        own |= {"max_concurrent": max(2, config.trials_of(name) // 6)}
    return ExperimentConfig(
        task=config.task,
        options=config.options,
        train={**config.train, **({} if constant else config.self_tuned), "method": contender.method, "seed": seed},
        search={**config.search, **({"hyperparameters": "all"} if constant else {})},
        tune=_tune(
            config,
            searcher=contender.searcher or "random",
            scheduler=contender.scheduler,
            seed=seed,
            **own,
        ),
    )


def _tune(config: CompareConfig, **own: Any) -> TuneSection:
    given = config.tune.model_dump(include=config.tune.model_fields_set)
    if own.get("scheduler") == "pbt":
        given.pop("max_concurrent", None)
    return TuneSection(**{**given, **own})
