"""What a comparison runs: one experiment per method and seed, one for all single runs together.

| method                             | trains                                                                        |
|------------------------------------|-------------------------------------------------------------------------------|
| `fixed`                            | one run over the whole budget with the initial hyperparameters: what no       |
|                                    | tuning comes to, with the same outer options as the next three                |
| `grid`, `random`, `bo`             | `trials` trials; the searcher proposes hyperparameters and outer options      |
| `asha`                             | random ones; bad ones end early, new ones begin until the budget is spent     |
| `pbt`                              | a population of `trials`                                                      |
| `stn`, `centered-stn`, `delta-stn` | one run over the whole budget, outer options as in `single`                   |
| `hybrid`                           | `trials` trials; `bo` proposes the outer options, Δ-STN tunes inside each     |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from ray_deltastn.training.settings import Settings
from ray_deltastn.tune.config import ExperimentConfig, TuneSection, first_error, unknown_key
from ray_deltastn.tune.nested import merged, nest


@dataclass(frozen=True)
class Contender:
    """How a method takes part: its searcher and scheduler for constant hyperparameters, or a method that tunes them."""

    method: str = "fixed"
    searcher: str | None = None
    scheduler: str = "fifo"

    @property
    def tuned(self) -> bool:
        """Whether the method tunes hyperparameters inside its trials."""
        return self.method != "fixed"


#: The methods that can be compared, in the order of the tables.
CONTENDERS = {
    "fixed": Contender(),
    "grid": Contender(searcher="grid"),
    "random": Contender(searcher="random"),
    "bo": Contender(searcher="bo"),
    "asha": Contender(searcher="random", scheduler="asha"),
    "pbt": Contender(searcher="random", scheduler="pbt"),
    "stn": Contender("stn"),
    "centered-stn": Contender("centered-stn"),
    "delta-stn": Contender("delta-stn"),
    "hybrid": Contender("delta-stn", searcher="bo"),
}


#: Options of `Settings` that the comparison sets itself; a run that ends early would not spend its budget.
FIXED = ("method", "seed", "steps_per_report", "hyperparameters", "patience")
#: Options that methods with constant hyperparameters do not read.
TUNING = (
    "preset",
    "response_lr",
    "response_optimizer",
    "response_fraction",
    "antithetic",
    "hyper_lr",
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
    """A comparison: an experiment's task, options, `train`, `search` and `tune`, and what is added here.

    `search` holds the outer options; constant methods search all hyperparameters of the task besides, each in its own
    range. Of `tune`, the searcher, scheduler, number of trials and metric are the comparison's own.

    Attributes:
        trials: trials of `train.epochs` epochs that a searching method may train; their product is the budget.
        single: values of the outer options for the methods that train a single run.
        self_tuned: options of `Settings` for the methods that tune themselves only, such as `hyper_lr`.
    """

    trials: int = Field(default=8, ge=1)
    single: dict[str, Any] = Field(default_factory=dict)
    self_tuned: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Check what concerns several sections."""
        self._check_sections()
        super().model_post_init(context)
        own = {"searcher", "scheduler", "num_samples", "budget", "metric", "mode", "warm_start", "seed"}
        given = sorted(own & self.tune.model_fields_set)
        if given:
            raise ValueError(f"`tune.{given[0]}` is set by the comparison itself, got it in `tune`")
        try:
            plan(self, [name for name in CONTENDERS if self.search or name != "hybrid"], 1)
        except ValidationError as error:
            raise ValueError(first_error(error, ExperimentConfig)) from None

    def _check_sections(self) -> None:
        """Raise ValueError unless every option is where it belongs, and in one place only."""
        if "epochs" not in self.train:
            raise ValueError("`train.epochs` must be given: with `trials` it is the budget")
        for section in ("train", "search", "self_tuned"):
            for key in getattr(self, section):
                name = key.split(".")[0]
                if section == "search" and name == "hyperparameters":
                    raise ValueError(
                        f"`search.{key}` must not be given: methods with constant values search all hyperparameters in "
                        f"their own ranges, got {self.search[key]!r}"
                    )
                if name in FIXED or (name == "epochs" and section != "train"):
                    raise ValueError(f"`{name}` is set by the comparison itself, got it in `{section}`")
                if section == "search" and name in TUNING:
                    raise ValueError(
                        f"`search.{key}` must be read by all methods, got one of those that tune themselves; it may be "
                        "in `self_tuned`"
                    )
        missing = [name for name in self.search if name not in self.single]
        if missing:
            raise ValueError(f"`single` must hold every option of `search`, got no `{missing[0]}`")
        unknown = [name for name in self.single if name not in self.search]
        if unknown:
            raise ValueError(unknown_key(f"single.{unknown[0]}", [f"single.{name}" for name in self.search]))
        both = [name for name in self.self_tuned if name in self.search or name in self.train]
        if both:
            raise ValueError(f"`{both[0]}` must be in one of `train`, `search` and `self_tuned`, got it in two")
        for name in self.self_tuned:
            if name not in Settings.names():
                raise ValueError(unknown_key(f"self_tuned.{name}", [f"self_tuned.{n}" for n in Settings.names()]))

    @property
    def budget(self) -> int:
        """Training epochs of each method."""
        return self.trials * int(self.train["epochs"])


@dataclass(frozen=True)
class Planned:
    """One experiment of a comparison.

    Attributes:
        methods: whose it is; several for single runs, which share one.
        seeds: of its searcher and trials.
        config: what runs.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    config: ExperimentConfig

    @property
    def name(self) -> str:
        """Of its folder: `random-s0`, `stn+delta-stn-s0+1+2`."""
        return f"{'+'.join(self.methods)}-s{'+'.join(map(str, self.seeds))}"

    @property
    def single(self) -> bool:
        """Whether each of its trials is the whole run of a method and seed."""
        return CONTENDERS[self.methods[0]].searcher is None


def plan(config: CompareConfig, methods: Sequence[str], seeds: int, begun: Iterable[str] = ()) -> list[Planned]:
    """The experiments of a comparison, single runs first.

    Args:
        config: the comparison.
        methods: names in `CONTENDERS`.
        seeds: number of seeds, from 0.
        begun: names of experiments that are there already. Those with a method and seed that is asked for stay as they
            are; the rest is planned around them.

    Raises:
        ValueError: if a method is unknown or named twice, or there is no seed.
    """
    for name in filter(None, methods):
        if name not in CONTENDERS:
            raise ValueError(unknown_key(f"--methods {name}", [f"--methods {known}" for known in CONTENDERS]))
    if len(set(methods)) < len(methods) or not methods or not all(methods):
        raise ValueError(f"`--methods` must name each method once, got {','.join(methods) or 'none'}")
    if seeds < 1:
        raise ValueError(f"`--seeds >= 1` must hold, got {seeds}")
    ordered = [name for name in CONTENDERS if name in methods]
    if "hybrid" in methods and not config.search:
        raise ValueError("`search` must hold an outer option for hybrid, got none: its trials would all be the same")
    missing = {(name, seed) for name in ordered for seed in range(seeds)}
    planned = []
    for pairs in sorted(map(_pairs, begun)):
        if missing.intersection(pairs):
            planned.append(_planned(config, *(tuple(dict.fromkeys(part)) for part in zip(*pairs, strict=True))))
            missing.difference_update(pairs)
    groups: dict[tuple[str, ...], list[int]] = {}
    for seed in range(seeds):
        single = tuple(name for name in ordered if CONTENDERS[name].searcher is None and (name, seed) in missing)
        if single:
            groups.setdefault(single, []).append(seed)
    planned += [_planned(config, group, tuple(of)) for group, of in groups.items()]
    searching = [(name, seed) for seed in range(seeds) for name in ordered if CONTENDERS[name].searcher]
    planned += [_planned(config, (name,), (seed,)) for name, seed in searching if (name, seed) in missing]
    return sorted(planned, key=lambda one: not one.single)


def _pairs(name: str) -> list[tuple[str, int]]:
    """Methods and seeds of an experiment, from the name of its folder; none if it is another one's."""
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
        train=merged({**config.train, **config.self_tuned}, {**chosen, "epochs": config.budget}),
        search={"method": f"choice({list(methods)!r})", "seed": f"choice({list(seeds)!r})"},
        tune=_tune(config, searcher="grid", num_samples=len(methods) * len(seeds), seed=0),
    )


def _searching(config: CompareConfig, name: str, seed: int) -> ExperimentConfig:
    contender = CONTENDERS[name]
    constant = not contender.tuned
    own: dict[str, Any] = {"num_samples": config.trials}
    if contender.scheduler == "asha":
        # Enough trials for the budget even if every one of them ended after its first epoch.
        own |= {"num_samples": config.budget, "budget": config.budget}
    if contender.scheduler == "pbt":
        # A trial that a mutation has spoiled must be seen to be bad; its best loss so far would hide that.
        own |= {"metric": "valid_loss"}
    if contender.searcher == "bo" and config.tune.max_concurrent is None:
        # With as many workers as trials, all of them would be proposed before any has a result.
        own |= {"max_concurrent": max(2, config.trials // 6)}
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
